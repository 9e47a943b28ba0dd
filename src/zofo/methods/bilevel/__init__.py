"""Bilevel-ZOFO: a backbone moved by forward passes and an adapter trained by gradients, in one problem."""
