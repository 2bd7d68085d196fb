"""Secure aggregation: sites send masked integers, and nobody sees more than the sum over a set that they agreed to.

The protocol is that of Bonawitz et al. 2017 ("Practical secure aggregation for privacy-preserving machine learning",
CCS; the full graph, against an active coordinator), for consortia of 3 to 50 sites that know each other's keys:

=========================  =========================================================================
``fixed_point``            bounded numbers as integers whose sum is exact; knows nothing of masks
``session``                what one masked sum is for, and the set that it is over
``keys``                   a site's fresh secrets of one attempt, its signed public halves, keys of pairs
``shamir``, ``shares``     secrets shared by threshold, sealed to their recipients
``stream``                 masks: streams of words that cancel in the sum
``site``, ``store``        a site's steps, its own rules, and what of it outlives a kill
``coordinator``, ``kept``  the coordinator's steps, and what of them outlives a kill
``company``                how many of all sites sign a set; one set for figures in a run
``update``                 an update as words, and the mean behind a sum
``figures``                what sites say of weights as words, and what a sum says
``driver``                 plays all parts in one process
=========================  =========================================================================

No Flower here. What each party learns, and what nobody is protected from: docs/secure-aggregation.md.
"""
