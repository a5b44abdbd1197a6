"""The application in an archive: bytes of a request -> counts. It needs torch, torchvision and Pillow only."""
