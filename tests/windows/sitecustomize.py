"""Python imports this module at its start if its folder is in PYTHONPATH: so programs start under the simulation."""

import simulation

simulation.install()
