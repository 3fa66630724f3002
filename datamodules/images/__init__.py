"""Finding and decoding images: folders, manifests, and scenes that need no files."""
