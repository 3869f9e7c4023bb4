"""Figures of the papers that several tests are held against."""

# percent of zeros after each round of 20 %, as both papers print them
SEQUENCE = [
    20,
    36,
    48.8,
    59.04,
    67.23,
    73.79,
    79.03,
    83.22,
    86.58,
    89.26,
    91.41,
    93.13,
    94.5,
    95.6,
    96.48,
    97.19,
    97.75,
]
