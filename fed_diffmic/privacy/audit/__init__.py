"""Attacks on our own mechanism: does a lower bound on epsilon, seen in runs, contradict what the ledger says?"""
