"""The section of a spec that says where the documents come from."""

from typing import Literal

from pydantic import Field, model_validator

from featkd.judging import Section


class Data(Section):
    """Where the documents come from. Exactly one of `builtin`, `files`, `hub`."""

    builtin: Literal["docstrings"] | None = Field(
        None, description="A corpus that needs no download: docstrings of installed packages."
    )
    packages: list[str] = Field(
        default_factory=list,
        description="Import names read by `builtin: docstrings`; 'stdlib' is the standard library.",
    )
    files: list[str] = Field(
        default_factory=list,
        description="Local files or globs: .txt, .jsonl, .json, .csv, .tsv, .parquet. Relative to the spec's folder.",
    )
    hub: str | None = Field(None, description="A dataset id on the Hugging Face hub. Downloads.")
    revision: str | None = Field(None, description="The commit of a hub dataset. Default: the newest.")
    hub_config: str | None = Field(None, description="The configuration of a hub dataset, if it has several.")
    split: str = Field("train", description="The split to read from a hub dataset.")
    sample_by: Literal["document", "paragraph", "line"] = Field(
        "paragraph", description="What one document is in a .txt file."
    )
    text_field: str = Field("text", description="Column with plain text. Dots reach into nested fields: 'a.0.b'.")
    prompt_field: str | None = Field(None, description="Column with the prompt. Set together with `response_field`.")
    response_field: str | None = Field(None, description="Column with the response; loss is taken on it alone.")
    prompt_format: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="How a prompt is put before its response. chat: the tokenizer's chat template; plain: a line "
        "break between them; auto: chat where the tokenizer has a template.",
    )
    attention: Literal["document", "block"] = Field(
        "document",
        description="What a training token attends to. document: its own document alone, as when it is scored; block: "
        "whatever stands before it in its block, other documents too: faster, the more so the longer the block.",
    )
    choices_field: str | None = Field(
        None,
        description="Column with a list of answers, for the heldout_choice task; a row whose response is not among "
        "them is left out.",
    )
    group_field: str | None = Field(
        None,
        description="Column that names where a row is from, e.g. a document: rows of one are on one side of the split. "
        "Default: rows of one prompt are.",
    )
    label_field: str | None = Field(
        None, description="Column with a class, for the heldout_routing task; training documents end with it."
    )
    label_prompt: str = Field("\n\nLibrary:", description="Text between a document and its label.")
    held_out: float = Field(0.05, gt=0, lt=0.5, description="Share of the documents held out for the tasks.")
    min_chars: int = Field(1, ge=1, description="Shorter documents and passages are dropped.")
    max_chars: int = Field(
        20_000,
        ge=16,
        description="Longer plain text is split into passages, at paragraph ends where possible; responses are not.",
    )
    max_documents: int | None = Field(None, ge=10, description="Keep at most so many documents (by content hash).")

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        given = [name for name in ("builtin", "files", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of builtin, files, hub (given: {', '.join(given) or 'none'})")
        if self.builtin and not self.packages:
            raise ValueError("builtin: docstrings needs packages, e.g. packages: [stdlib, numpy]")
        if bool(self.prompt_field) != bool(self.response_field):
            raise ValueError("prompt_field and response_field go together: set both or neither")
        if self.choices_field and not self.prompt_field:
            raise ValueError("choices_field needs prompt_field and response_field")
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars is above max_chars: write a smaller min_chars")
        return self
