"""The models: frame encoders, temporal models, and one file for each system's zoo. Pure PyTorch."""
