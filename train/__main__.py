"""`python -m train`, which is what torchrun starts: `torchrun -m train train CONFIG`."""

from train.cli import main

main()
