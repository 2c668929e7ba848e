"""The effective configs of a run, and which of them can run on its device. Needs no model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch

from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.case import Combination
from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.modelopt_support.cuda_extensions import ANNOUNCEMENT, build_extensions
from pytest_autoquant.modelopt_support.presets import check_presets
from pytest_autoquant.modelopt_support.probe import Prober
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.modelopt_support.status import Support
from pytest_autoquant.models.device import resolve_device, resolve_dtype
from pytest_autoquant.phases import PhaseClock
from pytest_autoquant.scoring.progress import Progress


class Configurations:
    """Resolves each pair under each granularity once and probes it on the device.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        clock: of this process; by default one of its own.
        is_cached: whether probes are remembered in the user's cache folder.
    """

    def __init__(
        self,
        device: str,
        dtype: str,
        progress: Progress,
        clock: PhaseClock | None = None,
        *,
        is_cached: bool = False,
    ) -> None:
        self._device_name = device
        self._dtype_name = dtype
        self._progress = progress
        self._clock = clock or PhaseClock()
        self._is_cached = is_cached
        self._configs: dict[str, EffectiveConfig] = {}

    @cached_property
    def device(self) -> torch.device:
        """The device that cases run on.

        Raises:
            UsageError: an unknown device, or one that this machine does not have.
        """
        return resolve_device(self._device_name)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The compute dtype on the device."""
        return resolve_dtype(self._dtype_name, self.device)

    def config(self, combination: Combination) -> EffectiveConfig:
        """Return the effective config of a pair under a granularity.

        Raises:
            UsageError: the installed ModelOpt lacks the pair's preset, or it does not fit the pair.
        """
        if combination.test_id not in self._configs:
            self._configs[combination.test_id] = self._prober.resolve(
                combination.pair, combination.granularity
            )
        return self._configs[combination.test_id]

    def support(self, combination: Combination) -> Support:
        """Return whether a pair under a granularity can run here, and if not why."""
        return self.config_support(self.config(combination))

    def config_support(self, config: EffectiveConfig) -> Support:
        """Return whether a config can run here, and if not why."""
        prober = self._prober
        with self._clock.phase("probing"):
            return prober.support(config)

    def check_presets(self, combinations: Iterable[Combination]) -> None:
        """Load the presets that pairs of one's own name, before anything is measured.

        Raises:
            UsageError: see ``presets.check_presets``.
        """
        pairs = {each.pair.name: each.pair for each in combinations if each.pair.from_preset}
        if pairs:
            with quiet():
                check_presets(pairs.values())

    def check(self, combination: Combination) -> StructureCheck:
        """Resolve a combination, have ModelOpt validate it, and return its status."""
        config = self.config(combination)
        self._prober.check_config(config)
        support = self.config_support(config)
        return StructureCheck(
            pair=combination.pair.name,
            granularity=combination.granularity.name,
            status=support.status.value,
            reason=support.reason,
            format_name=combination.pair.format_name,
            effective_bits=config.effective_bits,
            digest=config.digest,
        )

    def import_libraries(self) -> None:
        """Import ModelOpt, and with it what loads models."""
        with quiet(), self._clock.importing():
            import modelopt.torch.quantization  # noqa: F401 - warns once about torch.jit

    @cached_property
    def _prober(self) -> Prober:
        self.import_libraries()
        return Prober(
            self.device,
            self.dtype,
            is_cached=self._is_cached,
            before_first=self._build_extensions,
        )

    def _build_extensions(self) -> None:
        if self.device.type == "cuda":
            self._progress(ANNOUNCEMENT, 0, 1)
            build_extensions()
