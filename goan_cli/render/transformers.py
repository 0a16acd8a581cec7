"""The transformer that samples: loaded once, its blocks where the memory plan has them, the wanted LoRAs baked."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from goan_cli.lora.bake import LoraFile, bake, file_reports, restore
from goan_cli.lora.report import BakeRecipe, BakeReport
from goan_cli.model.resident import ResidentWeights
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import WeightStore, load_transformer
from goan_cli.packs.pack import Pack
from goan_cli.render.events import Baked, Event, Note, Stage
from goan_cli.render.execution import ResolvedExecution, attention_function, block_calls, keep_compiled_code
from goan_cli.render.memory import MemoryPlan
from goan_cli.render.streaming import BlockStream

InStage = Callable[[Stage], AbstractContextManager[None]]


@dataclass(kw_only=True)
class _Loaded:
    """A transformer in memory, and what is baked into it.

    `baked` is the identity of the recipe in the weights, None while they are being written; `touched` are the
    parameters that differ from the checkpoint's.
    """

    model: PackedTransformer
    store: WeightStore
    weights: ResidentWeights
    stream: BlockStream | None
    baked: str | None
    touched: set[str]
    report: BakeReport | None = None


class Transformers:
    """One transformer at a time, since one fills the memory. `cache` is where compiled code is kept."""

    def __init__(
        self, device: torch.device, *, cache: Path | None, stage: InStage, tell: Callable[[Event], None]
    ) -> None:
        self._device = device
        if cache is not None:
            keep_compiled_code(cache)
        self._stage = stage
        self._tell = tell
        self._key: tuple[Path, torch.dtype, bool] | None = None
        self._loaded: _Loaded | None = None

    @property
    def loaded(self) -> bool:
        """Whether there is one in memory."""
        return self._loaded is not None

    def forget(self) -> None:
        """Let go of it: what it holds can be read again."""
        self._loaded, self._key = None, None

    def step_aside(self) -> None:
        """Give back what only sampling needs: the ring that blocks are streamed through."""
        if self._loaded is not None and self._loaded.stream is not None:
            self._loaded.stream.release()

    def ready(
        self,
        pack: Pack,
        execution: ResolvedExecution,
        memory: MemoryPlan,
        loras: Sequence[LoraFile],
        wanted: BakeRecipe,
    ) -> tuple[PackedTransformer, BakeReport | None]:
        """The pack's transformer with exactly these LoRAs in its weights, ready to run as `execution` says.

        The report names these files, None without any. Raises InvalidInput for a checkpoint that does not fit, and
        LoraRefused for LoRAs that cannot be baked; the next call then starts from the checkpoint again.
        """
        to_bake = {name for lora in loras for name in lora.adapter.parameters}
        with self._stage(Stage.LOAD):
            calls, attend = block_calls(execution, self._device), attention_function(execution, self._device)
            loaded = self._placed(pack, execution, memory, to_bake)
            loaded.model.calls, loaded.model.attend = calls, attend
        if loaded.baked != wanted.identity:
            with self._stage(Stage.BAKE):
                try:
                    self._bake(loaded, loras, wanted, to_bake)
                finally:
                    if loaded.stream is not None:
                        loaded.stream.refresh()
                if loaded.report is not None:
                    self._tell(Baked(report=loaded.report))
        # The same recipe may have been baked from other paths: the report names this job's.
        report = None if loaded.report is None else replace(loaded.report, files=file_reports(loras))
        return loaded.model, report

    def _placed(self, pack: Pack, execution: ResolvedExecution, memory: MemoryPlan, to_bake: set[str]) -> _Loaded:
        key = (pack.transformer, execution.dtype, execution.fp8)
        if self._key != key or self._loaded is None:
            self.forget()
            model, store = load_transformer(
                pack.transformer,
                config_file=pack.config_of("transformer"),
                device=self._device,
                dtype=execution.dtype,
                fp8=execution.fp8,
                resident=memory.resident,
                unread=to_bake,  # what the bake will write is not read first
            )
            self._loaded = _Loaded(
                model=model,
                store=store,
                weights=ResidentWeights(model.state_dict(keep_vars=True), dtype=execution.dtype, device=self._device),
                stream=None,
                baked=None,
                touched=set(to_bake),
            )
            self._key = key
        self._arrange(self._loaded, memory)
        return self._loaded

    def _arrange(self, loaded: _Loaded, memory: MemoryPlan) -> None:
        """Have the blocks where the plan has them."""
        if loaded.stream is None and memory.streams:
            blocks = tuple(loaded.model.own_blocks())
            loaded.stream = BlockStream(blocks, memory.resident, self._device)
            loaded.model.block_source = loaded.stream
            if loaded.stream.note is not None:
                self._tell(Note(text=loaded.stream.note))
        elif loaded.stream is not None:
            loaded.stream.arrange(memory.resident)

    def _bake(self, loaded: _Loaded, loras: Sequence[LoraFile], wanted: BakeRecipe, to_bake: set[str]) -> None:
        """Bring the weights from the recipe they hold to the wanted one, from pristine bytes."""
        weights = loaded.weights
        loaded.baked, loaded.report = None, None
        with loaded.store.opened() as pristine:
            stale = loaded.touched - to_bake
            restore(weights, pristine, stale, store=weights.store)
            loaded.touched -= stale
            if loras:
                try:
                    loaded.report = bake(
                        weights, pristine, loras, base=wanted.base, touched=loaded.touched, store=weights.store
                    )
                except BaseException:
                    restore(weights, pristine, loaded.touched, store=weights.store)
                    loaded.touched = set()
                    loaded.baked = BakeRecipe(base=wanted.base).identity
                    raise
        loaded.baked = wanted.identity
