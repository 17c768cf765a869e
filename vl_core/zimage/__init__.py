"""Z-Image through diffusers: its text encoder, its painting, its files."""
