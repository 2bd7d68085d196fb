"""Differential privacy of a consortium: each site adds a share of the noise, and only the sum is seen.

Federated DP-SGD with the distributed discrete Gaussian mechanism (Kairouz, Liu and Steinke 2021, arXiv 2102.06387): one
step a round; a site's units are drawn, clipped, flattened, rounded and added as integers, with its share of noise.
"""
