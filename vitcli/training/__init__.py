"""model + data → better model. One `fit` for every kind of training. Knows no terminal: it yields what happened."""
