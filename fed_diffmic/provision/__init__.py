"""Who may take part: the consortium's CA, keys of sites, the roster, and the kit that a site starts from."""
