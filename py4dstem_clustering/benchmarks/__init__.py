"""How well and how fast this package works: the tables of the guide are made here."""
