"""What models say of images: asked, kept, and read again."""
