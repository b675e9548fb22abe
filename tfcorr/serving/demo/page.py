"""The page itself: Gradio's components and what happens between them.

Everything that the browser gets comes from this process: the fonts are the reader's own, Gradio's scripts
come with its package, and the examples with this one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from tfcorr.errors import TfcorrError
from tfcorr.resources import data_dir
from tfcorr.serving.demo.semantic import Matched, Matching, load_matcher
from tfcorr.serving.demo.super_resolution import MAX_REFERENCES, Upscaled, Upscaling

__all__ = ["Page"]

_TITLE = "tfcorr"
_MAX_FILE = "50mb"
_QUEUE = 16  # people who may wait; the models work for one at a time
_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "Menlo", "Consolas", "Liberation Mono", "monospace"]
_CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.pointing img { cursor: crosshair; }
#summary, #found, #semantic-found { min-height: 1.6em; }
"""

_ABOUT = """\
# tfcorr
A small image becomes four times larger, with real detail taken from sharp photographs of the same thing.
Everything runs on this machine; uploads stay in a temporary folder that goes when the page is ended.
"""
_NO_MATCHER = """\
No model for semantic matching is installed ({reason}).

Train one, then start the page with its folder:

```
tfcorr train semantic/birds_cpu data_root=DATA     # or another one of configs/semantic/
tfcorr demo --semantic-model FOLDER                # the folder that the training names at its end
```
"""


class Page:
    """The web page.

    Args:
        upscaling: the first tab's work.
        matching: the second tab's work, or `None` without a model.
        reason: why there is none.
    """

    def __init__(self, upscaling: Upscaling, matching: Matching | None, reason: str = ""):
        self.upscaling = upscaling
        self.matching = matching
        self.reason = reason
        self.blocks = self._build()

    @classmethod
    def load(
        cls, model: str | Path | None, semantic_model: str | Path | None, *, max_pixels: int, folder: Path
    ) -> Page:
        """Loads the models and builds the page, see `tfcorr.serving.demo.serve`."""
        from tfcorr.refsr.predictor import SuperResolver

        resolver = SuperResolver.from_pretrained(model)
        matcher, reason = load_matcher(semantic_model)
        matching = Matching(matcher, max_pixels=4 * max_pixels) if matcher is not None else None
        return cls(Upscaling(resolver, max_pixels=max_pixels, folder=folder), matching, reason)

    def application(self) -> FastAPI:
        """The page as an ASGI application."""
        self.blocks.queue(max_size=_QUEUE)
        # FastAPI's own documentation pages would load scripts from elsewhere.
        return gr.mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            self.blocks,
            path="/",
            footer_links=[],
            max_file_size=_MAX_FILE,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=_SANS, font_mono=_MONO),
            css=_CSS,
        )

    def _build(self) -> gr.Blocks:
        with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.Markdown(_ABOUT)
            with gr.Tab("Super-resolution"):
                self._super_resolution()
            with gr.Tab("Semantic matching"):
                if self.matching is None:
                    gr.Markdown(_NO_MATCHER.format(reason=self.reason), elem_id="no-matcher")
                else:
                    self._semantic()
        return blocks

    def _super_resolution(self) -> None:
        state = gr.State(None, time_to_live=3600, delete_callback=_forget)
        with gr.Row():
            with gr.Column(scale=2):
                limit = f"at most {self.upscaling.max_pixels:,} pixels"
                small = _upload(f"Small image ({limit})", height=220, elem_id="small")
                references = gr.Gallery(
                    label=f"References: sharp images of the same thing (up to {MAX_REFERENCES}, or none)",
                    type="filepath",
                    file_types=["image"],
                    columns=3,
                    height=260,
                    object_fit="contain",
                    interactive=True,
                    elem_id="references",
                )
                run = gr.Button("Upscale", variant="primary", elem_id="upscale")
                pair = _sample_pair()
                if pair:
                    gr.Examples(
                        [[str(pair[0]), [str(pair[1])]]],
                        [small, references],
                        label="Example",
                        example_labels=["A courtyard, seen from two places"],
                        elem_id="example",
                    )
            with gr.Column(scale=3):
                slider = gr.ImageSlider(
                    label="Enlarged by interpolation (left), upscaled (right)",
                    type="filepath",
                    format="png",
                    interactive=False,
                    max_height=560,
                    buttons=["fullscreen"],
                    elem_id="slider",
                )
                summary = gr.Markdown(elem_id="summary")
                download = gr.DownloadButton(
                    "Download the full-size PNG", interactive=False, elem_id="download"
                )
        gr.Markdown("### Where the detail came from\nClick a point of the result to see its match.")
        with gr.Row():
            view = _shown("Result: click a point", elem_id="view", elem_classes="pointing")
            match = _shown("Matched place in the reference", elem_id="match")
            confidence = _shown("Confidence of the match (dark: 0, yellow: 1)", elem_id="confidence")
        found = gr.Markdown(elem_id="found")

        # Gradio looks for this default among the arguments.
        def upscale(image, gallery, previous: Upscaled | None, progress=gr.Progress()):  # noqa: B008
            def step(done: int, steps: int) -> None:
                progress((done, steps), desc="Upscaling", unit="steps")

            files = [item[0] for item in gallery or []]
            with _told():
                result = self.upscaling.run(image, files, step)
            _forget(previous)
            marked_view, marked_reference, sentence = result.look_up(*result.start())
            return (
                result,
                (str(result.enlarged_file), str(result.file)),
                result.summary,
                gr.DownloadButton(value=str(result.file), interactive=True),
                marked_view,
                marked_reference,
                result.confidence_view,
                sentence,
            )

        run.click(
            upscale,
            [small, references, state],
            [state, slider, summary, download, view, match, confidence, found],
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
        )
        view.select(_look_up, [state], [view, match, found], api_visibility="private", show_progress="hidden")

    def _semantic(self) -> None:
        state = gr.State(None, time_to_live=3600)
        gr.Markdown(
            "Two pictures of different things of one kind: where does each place of one lie in the other?"
        )
        with gr.Row():
            source = _upload("Source", height=260, elem_id="source")
            target = _upload("Target", height=260, elem_id="target")
        run = gr.Button("Match", variant="primary", elem_id="match-button")
        pair = _sample_pair()
        if pair:
            gr.Examples(
                [[str(picture) for picture in pair]],
                [source, target],
                label="Example",
                example_labels=["A courtyard, seen from two places"],
                elem_id="semantic-example",
            )
        summary = gr.Markdown(elem_id="semantic-summary")
        with gr.Row():
            view = _shown("Source: click a point", elem_id="source-view", elem_classes="pointing")
            match = _shown("Its place in the target", elem_id="target-view")
            slider = gr.ImageSlider(
                label="Source (left), target brought onto it (right)",
                interactive=False,
                format="png",
                buttons=["fullscreen"],
                elem_id="semantic-slider",
            )
            confidence = _shown("Confidence (dark: 0, yellow: 1)", elem_id="semantic-confidence")
        found = gr.Markdown(elem_id="semantic-found")

        def work(source_file, target_file):
            with _told():
                result = self.matching.run(source_file, target_file)
            marked_source, marked_target, sentence = result.look_up(0.5, 0.5)
            views = (result.source_view, result.warped_view)
            return (
                result,
                result.summary,
                marked_source,
                marked_target,
                views,
                result.confidence_view,
                sentence,
            )

        run.click(
            work,
            [source, target],
            [state, summary, view, match, slider, confidence, found],
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
        )
        view.select(_look_up, [state], [view, match, found], api_visibility="private", show_progress="hidden")


def _upload(label: str, **named) -> gr.Image:
    """An image component that hands on the file as it was uploaded; `tfcorr.imaging` alone reads it, within
    its limits, where the component itself would open and convert it."""
    image = gr.Image(label=label, sources=["upload", "clipboard"], type="filepath", **named)
    # Not a subclass: Gradio writes a stub file beside the module of each.
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _shown(label: str, **named) -> gr.Image:
    """An image component that only shows."""
    return gr.Image(label=label, interactive=False, format="png", buttons=[], **named)


def _look_up(result: Upscaled | Matched | None, event: gr.SelectData):
    """Answers a click: `event.index` is (x, y) in pixels of the picture that was shown."""
    if result is None:
        raise gr.Error("There is no result yet, or it was kept for an hour and is gone.", title="tfcorr")
    view = result.view if isinstance(result, Upscaled) else result.source_view
    x, y = event.index
    return result.look_up((y + 0.5) / view.shape[0], (x + 0.5) / view.shape[1])


def _forget(result: Upscaled | None) -> None:
    if result is not None:
        result.forget()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Shows errors that have a sentence to the reader; of others the page says that there was one, and the
    terminal which."""
    try:
        yield
    except TfcorrError as error:
        raise gr.Error(str(error), title="tfcorr", print_exception=False) from error
    except MemoryError as error:
        raise gr.Error(f"Out of memory: {error}", title="tfcorr", print_exception=False) from error
    except Exception as error:
        # Gradio prints this one with its traceback.
        raise gr.Error(
            "This failed, and tfcorr does not know why; the terminal that runs the page says more.",
            title="tfcorr",
        ) from error


@functools.cache
def _sample_pair() -> tuple[Path, Path] | None:
    """The sample images that ship, if they are there."""
    folder = data_dir("docs") / "sample"
    pair = folder / "low_res.png", folder / "reference.png"
    return pair if all(path.is_file() for path in pair) else None
