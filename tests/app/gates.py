"""A gate in the way of a run, for tests of what happens beside one."""

from __future__ import annotations

import threading


class Gate:
    """Holds a run at its first sign of progress until opened."""

    def __init__(self, monkeypatch) -> None:
        import core.engine.pipeline as pipeline

        self.reached, self.open = threading.Event(), threading.Event()
        inner = pipeline.run

        def run(plan, checkpoint, out, *, ctx, workers=None, **kwargs):
            gate = self

            class Held:
                def progress(self, done: int, total: int, note: str = "") -> None:
                    ctx.progress(done, total, note)

                def partial(self, value) -> None:
                    ctx.partial(value)
                    gate.reached.set()

                def check(self) -> None:
                    if gate.reached.is_set():
                        gate.open.wait(20)
                    ctx.check()

            return inner(plan, checkpoint, out, ctx=Held(), workers=1, **kwargs)

        monkeypatch.setattr(pipeline, "run", run)
