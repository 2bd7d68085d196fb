"""Clipped sums of units' gradients without the gradients: norms from activations and output gradients."""
