"""Multipliers into base units: seconds, bytes, FLOP. Display units appear only in reports."""

from __future__ import annotations

US = 1e-6
MS = 1e-3
MINUTE = 60.0
HOUR = 3600.0

KB = 1e3
MB = 1e6
GB = 1e9
TB = 1e12
KIB = 1024.0
MIB = 1024.0**2
GIB = 1024.0**3

GIGA = 1e9
TERA = 1e12

GBIT_PER_S = 1e9 / 8.0
