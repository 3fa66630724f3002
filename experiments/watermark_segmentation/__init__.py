"""Programs around watermark segmentation."""
