"""Autellix's ATLAS (arXiv 2502.13965): programs, here workflows, that have had little service go first.

A program's one scalar is the longest chain of measured service among its calls so far, which no graph need be known
for: a call joins the chain its program had when it became ready. The shorter the chain the sooner the call; a call
of a program that has waited at least beta times its service counts as one of a program without any, so that
none starves. Calls that have started are not preempted, and chains are compared exactly, not by class.
"""

import numpy as np

from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.policy.profile import Profile


class Atlas:
    projected = False

    def __init__(self, profile: Profile) -> None:
        self._beta_milli = profile.atlas_beta_milli

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        services = [call.workflow.service for call in ages.calls]
        path_us = np.array([call.path_us for call in ages.calls], dtype=np.int64)
        served_us = np.array([service.served_us for service in services], dtype=np.int64)
        waited_us = np.array([service.waited_us for service in services], dtype=np.int64)
        starving = (waited_us + ages.now_us - ages.ready_us) * 1_000 >= self._beta_milli * served_us
        return np.where(starving, 0, path_us)
