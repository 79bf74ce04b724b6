"""Faults put in by hand: processes killed, files damaged, disks that refuse, odd words; and what becomes of runs."""
