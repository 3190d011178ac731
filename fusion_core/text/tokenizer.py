"""Tokenizers of checkpoints, and one trained here: a unigram model as T5's, with pad, end, unknown, bytes and 100 sentinels.

What pad, end and sentinels are is said once, by ``Tokenizer.special``: the tokenizer's own names for them, and their ids.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers
from tokenizers.models import Unigram

from fusion_core.errors import InputError
from fusion_core.seeds import seed32
from fusion_core.text import spiece
from fusion_core.text.encoding import check_characters, check_pointer
from fusion_core.text.json_files import LARGE, read_json
from fusion_core.text.words import WordByWord, t5_pipeline

PAD, EOS, UNK = 0, 1, 2  # ids in the tokenizers that are trained here, and in T5's sentencepiece models
SMALLEST = 3 + 256 + 1  # pieces of a vocabulary: the special tokens, the bytes, and one more
SENTINELS = 100  # of those
MOST_LINES = 200_000  # of a text on which a tokenizer is trained

SENTINEL_PIECE = re.compile(r"<extra_id_\d+>")
# files that name the special tokens; the first that does counts
NAMING = ("tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids with a meaning in text to text.

    Attributes:
      pad: of padding.
      end: of the end of a text.
      sentinels: of ``<extra_id_0>``, ``<extra_id_1>``, ... up to the first that is missing.
    """

    pad: int
    end: int
    sentinels: tuple[int, ...]

    def check_sentinels(self) -> None:
        """Raise InputError if there are no sentinels."""
        if not self.sentinels:
            raise InputError(
                "the tokenizer has no <extra_id_0>; span corruption marks what it leaves out with T5's sentinels: take a T5's "
                "tokenizer, or add <extra_id_0> to <extra_id_99> to this one"
            )


class Tokenizer:
    """A map from text to ids and back. Truncation and padding that the backend was saved with are switched off.

    Args:
      backend: of the ``tokenizers`` library.
      pad, end: pieces of padding and of the end of a text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad: str = "<pad>", end: str = "</s>") -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.pad, self.end = backend, pad, end

    @property
    def vocab_size(self) -> int:
        """Number of ids, sentinels included; ids that are left out between others count."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    @functools.cached_property
    def special(self) -> SpecialIds:
        """The ids of padding, end and sentinels, by the names of their pieces. Raises InputError without pad or end."""
        pad, end = map(self.backend.token_to_id, (self.pad, self.end))
        named = map(self.backend.token_to_id, (f"<extra_id_{i}>" for i in itertools.count()))
        sentinels = tuple(iter(lambda: next(named), None))
        if pad is None or end is None:
            pieces = (
                (pad, f"pad token {self.pad}"),
                (end, f"end token {self.end}"),
                (sentinels, "sentinel <extra_id_0>"),
            )
            missing = " and no ".join(what for found, what in pieces if found in (None, ()))
            raise InputError(
                f"the tokenizer has no {missing}; take a T5's tokenizer, or add what is missing, and name it as pad_token and "
                f"eos_token in {NAMING[0]}"
            )
        return SpecialIds(pad, end, sentinels)

    def sentinel(self, i: int) -> int:
        """Return the id of ``<extra_id_i>``. Raises InputError if the tokenizer has no sentinels."""
        self.special.check_sentinels()
        return self.special.sentinels[i]

    @functools.cached_property
    def _words(self) -> WordByWord | None:
        return WordByWord.of(self.backend)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text as the tokenizer gives them; T5's ends each text with the end token."""
        try:
            if self._words is not None:
                return self._words.encode(texts)
            return [np.asarray(e.ids, np.int32) for e in self.backend.encode_batch_fast(list(texts))]
        except TypeError:
            for i, text in enumerate(texts, start=1):
                check_characters(text, f"text {i}, {text[:40]!r}")
            raise
        except BaseException as error:  # the library raises bare Exception, or panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InputError(f"the tokenizer cannot encode a text ({error}); take another one") from None

    def encode_ended(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, each ending with the end token, also if the tokenizer writes none."""
        end = self.special.end
        return [x if len(x) and x[-1] == end else np.append(x, np.int32(end)) for x in self.encode(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of the ids; padding and end are left out, sentinels are shown."""
        hidden = (self.special.pad, self.special.end)
        return self.backend.decode([int(i) for i in ids if i not in hidden], skip_special_tokens=False)

    def save(self, folder: pathlib.Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which transformers' ``AutoTokenizer`` reads."""
        # not by its own writer, whose errors are no OSErrors
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        named = {"pad_token": self.pad, "eos_token": self.end, "unk_token": "<unk>"}
        settings = {
            # T5Tokenizer would rebuild the tokenizer without its byte fallback; this class takes the file as it is
            "tokenizer_class": "PreTrainedTokenizerFast",
            # a name that it does not have would be added to it
            **{name: piece for name, piece in named.items() if self.backend.token_to_id(piece) is not None},
            "additional_special_tokens": [self.backend.id_to_token(i) for i in self.special.sentinels],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Tokenizer:
        """Read a tokenizer: a folder's ``tokenizer.json``, else its ``spiece.model``; or such a file itself.

        Raises:
          InputError: there is none, it is damaged, or a ``.model`` is not a unigram model as T5's are.
        """
        file = pathlib.Path(path)
        names = special_names(file if file.is_dir() else file.parent)
        if file.is_dir() or file.suffix not in (".json", ".model"):
            found = [file / name for name in ("tokenizer.json", "spiece.model") if (file / name).exists()]
            file = found[0] if found else file / "tokenizer.json"
        if not file.exists():
            raise InputError(f"there is no {file}; give the folder of a checkpoint with its tokenizer")
        check_pointer(file)
        if (size := file.stat().st_size) > LARGE:
            raise InputError(f"{file} has {size:,} bytes; a tokenizer has at most {LARGE:,}: copy it again")
        if file.suffix == ".model":
            return cls(_from_sentencepiece(file), **names)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file} cannot be read ({error}); copy it again") from None
        if backend.post_processor is not None:
            _check_templates(file, json.loads(backend.post_processor.__getstate__()))
        return cls(backend, **names)


def _check_templates(file: pathlib.Path, processor: dict[str, Any]) -> None:
    """Raise InputError if what is written around a text is a token without an id: the library would panic."""
    for inner in processor.get("processors", ()):
        _check_templates(file, inner)
    used = [piece.get("SpecialToken") for name in ("single", "pair") for piece in processor.get(name) or ()]
    for token in filter(None, used):
        if token["id"] not in processor.get("special_tokens", {}):
            raise InputError(f"{file} ends texts with {token['id']!r}, which has no id there; copy it again")


def special_names(folder: pathlib.Path) -> dict[str, str]:
    """Return the pieces that a folder's files name as ``pad`` and ``end``, as far as they do."""
    found: dict[str, str] = {}
    for file in NAMING:
        try:
            values = read_json(folder / file, longest=LARGE)
        except (OSError, InputError):
            continue  # nothing is said there
        named = {ours: values.get(theirs) for ours, theirs in (("pad", "pad_token"), ("end", "eos_token"))}
        for name, piece in named.items():
            piece = piece.get("content") if isinstance(piece, dict) else piece
            if isinstance(piece, str):
                found.setdefault(name, piece)
    return found


def _unigram(vocab: Sequence[tuple[str, float]], unknown: int, byte_fallback: bool) -> tokenizers.Tokenizer:
    """Return T5's tokenizer around a vocabulary: words from white space, an end token after each text."""
    backend = tokenizers.Tokenizer(Unigram(list(vocab), unk_id=unknown, byte_fallback=byte_fallback))
    t5_pipeline(backend, "</s>", EOS)
    if byte_fallback:
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder])
    return backend


def _from_sentencepiece(file: pathlib.Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a ``.model``; if it has no sentinels, they are added, as transformers adds T5's."""
    model = spiece.read_model(file)
    if model.special != (PAD, EOS, UNK) or model.pieces[EOS][0] != "</s>":
        raise InputError(
            f"{file} has pad, end and unknown at {model.special}, but T5 at {(PAD, EOS, UNK)}; take the tokenizer of a T5"
        )
    vocab = [(text, score) for text, score, _ in model.pieces]
    if not any(SENTINEL_PIECE.fullmatch(text) for text, _ in vocab):
        vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(SENTINELS))]
    backend = _unigram(vocab, UNK, model.byte_fallback)
    if model.charsmap:
        backend.normalizer = normalizers.Precompiled(model.charsmap)
    special = [text for text, _, kind in model.pieces if kind in (spiece.CONTROL, spiece.UNKNOWN)]
    backend.add_special_tokens(special + [text for text, _ in vocab if SENTINEL_PIECE.fullmatch(text)])
    own = [text for text, _, kind in model.pieces if kind == spiece.USER_DEFINED and not SENTINEL_PIECE.fullmatch(text)]
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in own])
    return backend


def sampled(lines: list[str], characters: int, seed: int) -> list[str]:
    """Return lines drawn with the seed, in their order: as few as have so many ``characters``, at most ``MOST_LINES``.

    If there are no more than that, or if ``characters`` is 0 and there are no more lines, all of them are returned.
    """
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    order = np.random.default_rng((seed, 5)).permutation(len(lines))
    enough = int(np.searchsorted(np.cumsum(lengths[order]), characters)) + 1 if characters else len(lines)
    return [lines[i] for i in np.sort(order[: min(enough, MOST_LINES)])]


def train_tokenizer(texts: Sequence[str], pieces: int, seed: int = 0, sample: int = 0) -> Tokenizer:
    """Train a unigram model (sentencepiece) with byte fallback.

    Args:
      texts: documents to learn from; at most ``MOST_LINES`` of their lines, drawn with the seed, are used.
      pieces: vocabulary size without the sentinels: pad, end, unknown and the 256 bytes included.
      seed: of that draw.
      sample: characters of the lines that are drawn; if 0, or if the text has no more, the text's.

    Raises:
      InputError: the text supports fewer pieces, or its characters need more.
    """
    if pieces < SMALLEST:
        raise InputError(f"a vocabulary of {pieces} is too small: special tokens and bytes alone are {SMALLEST}")
    lines = [" ".join(line.split()) for text in texts for line in text.split("\n")]
    lines = sampled([line for line in lines if line], sample, seed)
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed32(seed))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            byte_fallback=True,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=-1,
            pad_piece="<pad>",
            # whitespace is split by the pre-tokenizer; any other rule would need its table in tokenizer.json
            normalization_rule_name="identity",
            input_sentence_size=MOST_LINES,  # its own draw heeds no seed, and differs between processes
            shuffle_input_sentence=True,
            max_sentence_length=2**30,  # longer lines, in bytes, would be dropped without a word
            num_threads=1,  # sums in a fixed order: the same text gives the same vocabulary
            minloglevel=2,
        )
    except RuntimeError as error:
        if least := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise InputError(
                f"a vocabulary of {pieces} is too small: this text's characters, special tokens and bytes alone are "
                f"{least.group(1)}; take a larger one"
            ) from None
        limit = re.search(r"<= (\d+)\.", str(error))
        if "Vocabulary size" in str(error):
            most = limit.group(1) if limit else "fewer"
            raise InputError(
                f"the text supports {most} pieces, but a vocabulary of {pieces} was asked for; give more text, or take a "
                "smaller one"
            ) from None
        raise InputError(f"the tokenizer could not be trained on this text: {error}") from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    # few digits, so that the file's reader, which rounds, gives the same tokenizer
    scores = [(trained.id_to_piece(i), round(trained.get_score(i), 6)) for i in range(trained.vocab_size())]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    backend = _unigram(scores + [(s, 0.0) for s in sentinels], UNK, byte_fallback=True)
    backend.add_special_tokens(["<pad>", "</s>", "<unk>", *sentinels])
    return Tokenizer(backend)
