"""`moesim validate`: predicts measured runs, and says how wrong the predictions are."""
