"""What the benchmarks of training quality are made of: tokens, sides that train, one evaluator, fronts, pages."""
