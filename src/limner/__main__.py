"""``python -m limner`` is ``limner``; it is also what `accelerate launch -m limner` and torchrun start."""

from limner.cli.main import main

raise SystemExit(main())
