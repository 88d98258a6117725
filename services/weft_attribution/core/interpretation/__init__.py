"""Labels made by a language model, and how well they predict where their features are active."""
