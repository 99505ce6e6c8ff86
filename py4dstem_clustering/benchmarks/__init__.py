"""How well and how fast: the tables of the guide are made here."""
