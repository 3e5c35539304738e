"""What comes out of an encoder: heads on its features (``heads``) and class prototypes of them (``prototypes``)."""
