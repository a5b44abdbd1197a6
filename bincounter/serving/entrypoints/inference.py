"""The four functions that AWS's older PyTorch image calls: its toolkit finds them in ``code/inference.py``."""
