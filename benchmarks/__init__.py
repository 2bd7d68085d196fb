"""Programs that measure; run from the checkout, never shipped. (A package, so that no installed one of this name is in front.)"""
