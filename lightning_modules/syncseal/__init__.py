"""SyncSeal: a hidden pattern that tells how a picture was moved."""
