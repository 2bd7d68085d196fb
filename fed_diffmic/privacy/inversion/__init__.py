"""Attacks on updates without privacy: can the images of a batch be seen in what leaves the site?"""
