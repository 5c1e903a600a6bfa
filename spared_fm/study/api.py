"""The object ``spared_fm.open`` gives: a store and the verbs on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import anndata as ad
    import numpy as np
    import pandas as pd
    from torch.utils.data import DataLoader


class Study:
    """A store with its verbs. Each verb is documented at the function it calls, in ``spared_fm.study``.

    Parameters
    ----------
    path
        The store's folder.
    create
        Make an empty store where there is none.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.layout = Layout.create(path) if create else Layout.open(path)

    def __repr__(self) -> str:
        return f"Study({str(self.layout.root)!r}: {len(self.slides)} slides, {len(self.cohorts)} cohorts)"

    @property
    def slides(self) -> list[str]:
        """Ids of the slides, sorted."""
        return self.layout.slides()

    @property
    def cohorts(self) -> list[str]:
        """Names of the cohorts, sorted."""
        return self.layout.cohorts()

    def slide(self, slide: str) -> ad.AnnData:
        """Read a slide: raw counts, spots, thumbnail and whatever embeddings it has (rows without a receipt are NaN)."""
        from spared_fm.store.embeddings import slide_record
        from spared_fm.store.nodes import read_node

        slide_record(self.layout, slide)
        return read_node(self.layout, self.layout.slide(slide))

    def features(self, slide: str, encoder: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Embeddings of a slide's spots, shape (spots, dim); raises where a chunk is unfinished."""
        from spared_fm.store.embeddings import EmbeddingArray
        from spared_fm.study.encode import find_key

        array = EmbeddingArray(self.layout, slide, find_key(self.layout, [slide], encoder))
        array.check_current()
        return array.read(rows)

    def tokens(self, slide: str, encoder: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Token grids of a slide's spots, shape (spots, g, g, width); raises where a chunk is unfinished."""
        from spared_fm.store.embeddings import EmbeddingArray
        from spared_fm.study.encode import find_key

        array = EmbeddingArray(self.layout, slide, find_key(self.layout, [slide], f"tokens/{encoder}"))
        array.check_current()
        grid, values = array.attributes["tokens"], array.read(rows)
        return values.reshape(len(values), grid, grid, -1)

    def cohort_data(self, name: str, layers: Sequence[str] | None = None) -> ad.AnnData:
        """Read a cohort: spots × panel genes with its registered layers."""
        from spared_fm.study.cohort import cohort_data

        return cohort_data(self.layout, name, layers)

    def ingest(self, path: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Add the slides at ``path``; see :func:`spared_fm.study.ingest.ingest`."""
        from spared_fm.study.ingest import ingest

        return ingest(self.layout, path, **options)

    def ingest_table(self, table: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Add the slides a CSV lists; see :func:`spared_fm.study.table.ingest_table`."""
        from spared_fm.study.table import ingest_table

        return ingest_table(self.layout, table, **options)

    def encode(self, encoders: str | Sequence[str], **options: Any) -> list[dict[str, Any]]:
        """Encode slides; see :func:`spared_fm.study.encode.encode`."""
        from spared_fm.study.encode import encode

        return encode(self.layout, encoders, **options)

    def forecast(self, encoders: str | Sequence[str], **options: Any) -> list[dict[str, Any]]:
        """Say what encoding would do; see :func:`spared_fm.study.forecast.forecast`."""
        from spared_fm.study.forecast import forecast

        return forecast(self.layout, encoders, **options)

    def import_features(self, files: str | Path | Sequence[str | Path], **options: Any) -> list[dict[str, Any]]:
        """Import vectors other tools made; see :func:`spared_fm.study.import_features.import_features`."""
        from spared_fm.study.import_features import import_features

        return import_features(self.layout, files, **options)

    def import_spared(self, path: str | Path, name: str, **options: Any) -> dict[str, Any]:
        """Add a file of SpaRED's as slides and a cohort; see :func:`spared_fm.study.spared_files.import_spared`."""
        from spared_fm.study.spared_files import import_spared

        return import_spared(self.layout, path, name, **options)

    def export_spared(self, name: str, to: str | Path, **options: Any) -> dict[str, Any]:
        """Write such a cohort as a file of SpaRED's; see :func:`spared_fm.study.spared_export.export_spared`."""
        from spared_fm.study.spared_export import export_spared

        return export_spared(self.layout, name, to, **options)

    def fetch(self, name: str, to: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Download a data set and ingest it; see :func:`spared_fm.study.fetch.fetch`."""
        from spared_fm.study.fetch import fetch

        return fetch(name, to, layout=self.layout, **options)

    def export(self, slides: str | Sequence[str] | None = None, **options: Any) -> list[dict[str, Any]]:
        """Write embeddings for other tools; see :func:`spared_fm.study.export.export`."""
        from spared_fm.study.export import export

        return export(self.layout, slides, **options)

    def cohort(self, name: str, **options: Any) -> dict[str, Any]:
        """Make a cohort; see :func:`spared_fm.study.cohort.cohort`."""
        from spared_fm.study.cohort import cohort

        return cohort(self.layout, name, **options)

    def complete(self, cohort: str, **options: Any) -> dict[str, Any]:
        """Complete a layer; see :func:`spared_fm.study.completing.complete`."""
        from spared_fm.study.completing import complete

        return complete(self.layout, cohort, **options)

    def evaluate_completion(self, cohort: str, **options: Any) -> dict[str, Any]:
        """Score completion methods on hidden entries; see :func:`spared_fm.study.completing.evaluate`."""
        from spared_fm.study.completing import evaluate

        return evaluate(self.layout, cohort, **options)

    def complete_slide(
        self, cohort: str, slide: ad.AnnData, *, method: str, source: str, **options: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Complete a slide outside the cohort; see :func:`spared_fm.study.completing.complete_slide`."""
        from spared_fm.study.completing import complete_slide

        return complete_slide(self.layout, cohort, slide, method=method, source=source, **options)

    def loader(
        self,
        cohort: str,
        encoders: str | Sequence[str],
        targets: str | Sequence[str] = "lognorm",
        split: str = "train",
        **options: Any,
    ) -> DataLoader[dict[str, Any]]:
        """Make batches to train heads with PyTorch; see :func:`spared_fm.study.loader.loader`."""
        from spared_fm.study.loader import loader

        return loader(self.layout, cohort, encoders, targets, split, **options)

    def fit(self, cohort: str, **options: Any) -> dict[str, Any]:
        """Fit and save a head; see :func:`spared_fm.study.evaluate.fit`."""
        from spared_fm.study.evaluate import fit

        return fit(self.layout, cohort, **options)

    def predict(self, cohort: str, run: str, **options: Any) -> Mapping[str, ad.AnnData]:
        """Apply a saved head; see :func:`spared_fm.study.evaluate.predict`."""
        from spared_fm.study.evaluate import predict

        return predict(self.layout, cohort, run, **options)

    def benchmark(self, cohort: str, *, report: str | Path | None = None, **options: Any) -> pd.DataFrame:
        """Score heads; see :func:`spared_fm.study.evaluate.benchmark`. One row per encoder, head, target, split and slide.

        ``report`` names an HTML file to write beside.
        """
        import pandas as pd

        from spared_fm.study.evaluate import benchmark

        results = benchmark(self.layout, cohort, **options)
        if report is not None:
            from spared_fm.study.reporting import benchmark_report

            benchmark_report(self.layout, cohort, results, report)
        return pd.DataFrame([row for _, found in results for row in found.rows])

    def run_benchmark(self, toml: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Run a declared benchmark; see :func:`spared_fm.study.matrix.run`."""
        from spared_fm.study.matrix import run

        return run(self.layout, toml, **options)

    def show_benchmark(self, name: str) -> pd.DataFrame:
        """Give a declared benchmark's table; see :func:`spared_fm.study.matrix.show`."""
        from spared_fm.study.matrix import show

        return show(self.layout, name)

    def report_benchmark(self, name: str, path: str | Path, **options: Any) -> dict[str, Any]:
        """Write a declared benchmark's report; see :func:`spared_fm.study.matrix_report.report`."""
        from spared_fm.study.matrix_report import report

        return report(self.layout, name, path, **options)

    def benchmark_table(self, name: str) -> str:
        """Write that table as parquet; see :func:`spared_fm.study.matrix.table`."""
        from spared_fm.study.matrix import table

        return table(self.layout, name)

    def index(self, encoder: str, **options: Any) -> dict[str, Any]:
        """Make an index, or bring it up to date; see :func:`spared_fm.study.index.index`."""
        from spared_fm.study.index import index

        return index(self.layout, encoder, **options)

    def search(self, encoder: str, **options: Any) -> pd.DataFrame:
        """Find similar patches; see :func:`spared_fm.study.search.search`. One row per result."""
        import pandas as pd

        from spared_fm.study.search import COLUMNS, search

        rows = search(self.layout, encoder, **options)
        return pd.DataFrame(rows, columns=None if rows else list(COLUMNS))

    def transfer(self, encoder: str, **options: Any) -> pd.DataFrame:
        """Transfer a label or expression; see :func:`spared_fm.study.transfer.transfer`. One row per query."""
        import pandas as pd

        from spared_fm.study.transfer import transfer

        return pd.DataFrame(transfer(self.layout, encoder, **options))

    def info(self) -> dict[str, Any]:
        """Say what the store holds; see :func:`spared_fm.study.info.info`."""
        from spared_fm.study.info import info

        return info(self.layout)

    def verify(self, **options: Any) -> list[dict[str, Any]]:
        """Check what is stored, and mend it; see :func:`spared_fm.study.verify.verify`."""
        from spared_fm.study.verify import verify

        return verify(self.layout, **options)

    def rm(self, **options: Any) -> list[dict[str, Any]]:
        """Remove things; see :func:`spared_fm.study.rm.rm`."""
        from spared_fm.study.rm import rm

        return rm(self.layout, **options)

    def gc(self, **options: Any) -> list[dict[str, Any]]:
        """Delete leftovers; see :func:`spared_fm.study.gc.gc`."""
        from spared_fm.study.gc import gc

        return gc(self.layout, **options)

    def merge(self, other: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Copy what another store has; see :func:`spared_fm.study.merge.merge`."""
        from spared_fm.study.merge import merge

        return merge(self.layout, Layout.open(other), **options)

    def relink(self, folder: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Find moved images; see :func:`spared_fm.study.relink.relink`."""
        from spared_fm.study.relink import relink

        return relink(self.layout, folder, **options)
