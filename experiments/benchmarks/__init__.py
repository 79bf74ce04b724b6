"""How fast this code is: beside other libraries' code for the same work, and beside what the machine could do."""
