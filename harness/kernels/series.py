# SPDX-License-Identifier: GPL-2.0-only
"""Patch series: where patches come from, and trees with them applied."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from harness.errors import InfraError, UsageError
from harness.kernels import git, trees
from harness.kernels.git import Git
from harness.kernels.programs import run, tail
from harness.kernels.store import Store, rmtree
from harness.kernels.trees import Tree

FORMS = (
    "a patch file, a directory of them (with or without a file `series`), an mbox, "
    "git:DIRECTORY:FIRST..LAST or b4:MESSAGE-ID"
)

# The line that separates the mails of an mbox, with a header after it: a commit message
# may have lines that begin with "From ".
_FROM = re.compile(rb"^From \S[^\n]*\d:\d\d[^\n]*\n(?=[\w-]+:)", re.M)
_HEADER = re.compile(rb"(From|Subject|Date|Message-I[dD]|MIME-Version): ")
_DIFF = re.compile(r"^(diff --git |--- \S[^\n]*\n\+\+\+ )", re.M)
_TAG = re.compile(r"^(\s*\[[^\]]*\])+\s*")
_NUMBER = re.compile(r"^\s*(?:\[[^\]]*\]\s*)*?\[[^\]]*?\b(\d+)/(\d+)\]")
_MOVED = re.compile(r"^(?:rename|copy) from ([^\n]+)$", re.M)
_FAILED = re.compile(r"^error: patch failed: (.*):(\d+)$", re.M)
_LINE = re.compile(r"(?:line |:)(\d+)\b")
_SHOWN = 3
_HUNK_LINES = 40


@dataclass(frozen=True)
class Patch:
    """One patch: ``name`` is where it is from, ``text`` holds the diff, after any words.

    Bytes of ``text`` that are not UTF-8 are kept as surrogates.
    """

    name: str
    subject: str
    text: str


@dataclass(frozen=True)
class _Mail:
    patch: Patch
    number: int | None
    reply: bool


def read(argument: str, tree: Tree | None, store: Store) -> tuple[Patch, ...]:
    """Return the patches that ``argument`` names, in the order in which they are applied.

    ``git::A..B`` is a range in the repository of ``tree``.  Cover letters and replies are
    left out.  Raises UsageError when there is no such thing or it is no series, InfraError
    when it can't be had.
    """
    kind, _, name = argument.partition(":")
    if kind == "b4":
        return _b4(name)
    if kind == "git":
        return _range(argument, name, tree, store)
    path = Path(argument).expanduser()
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise UsageError(f"there is no series {argument}", f"a series is {FORMS}")
    return _of_mails(path.name, _file(path))


def apply(tree: Tree, patches: Sequence[Patch]) -> list[Tree]:
    """Return ``tree`` after each of ``patches``, as many trees as there are patches.

    Patches apply without fuzz, at other lines if need be.  Raises UsageError with the
    rejected hunk when one does not, InfraError when the cache is at fault.
    """
    made: list[Tree] = []
    repository = tree.repository
    # Always the same place: what a killed process left is cleared by the next.
    scratch = repository / "apply"
    with git.disk_errors(repository), git.locked(repository / "apply.lock"):
        rmtree(scratch)
        (scratch / "files").mkdir(parents=True)
        reader = Git(repository, scratch / "index", scratch / "files")
        writer = Git(repository, scratch / "index", scratch / "files", writing=True)
        try:
            reader.run("read-tree", tree.oid, what=f"reading {tree.origin}")
            for number, patch in enumerate(patches, 1):
                place = f"{patch.name} ({number} of {len(patches)})"
                oid = _apply_one(patch, place, tree, reader, writer, scratch)
                reference = f"{tree.reference} with {place}"
                release = trees.release_of(reader, oid, reference)
                origin = f"{tree.origin} with {place}"
                made.append(Tree(reference, repository, oid, origin, release))
        finally:
            rmtree(scratch)
    return made


def _apply_one(
    patch: Patch, place: str, tree: Tree, reader: Git, writer: Git, scratch: Path
) -> str:
    file = scratch / "patch"
    file.write_bytes(patch.text.encode(errors="surrogateescape"))
    what = f"applying {place}"
    done = reader.run("apply", "--numstat", "-z", file, what=what, check=False)
    if done.returncode != 0:
        raise _malformed(patch, place, done.stderr.replace(str(file), patch.name))
    paths = [row.split("\t", 2)[2] for row in done.stdout.split("\0") if row.count("\t") >= 2]
    reader.lend([*paths, *_MOVED.findall(patch.text)], scratch / "files")
    words = ["apply", "--cached", "--whitespace=nowarn"]
    done = writer.run(*words, file, what=what, check=False)
    if done.returncode != 0:
        back = reader.run(*words, "--check", "-R", file, what=what, check=False)
        raise _refused(patch, place, tree, done.stderr, already=back.returncode == 0)
    return writer.run("write-tree", "--missing-ok", what=what).stdout.strip()


def _malformed(patch: Patch, place: str, stderr: str) -> UsageError:
    reason = _reasons(stderr)[0]
    shown = ""
    match = _LINE.search(reason)
    lines = patch.text.split("\n")
    if match and 0 < int(match[1]) <= len(lines):
        shown = f"\n    {lines[int(match[1]) - 1]}"
    return UsageError(
        f"{place}: it is no well-formed patch: {reason}{shown}",
        "its lines may have been wrapped or cut off, or its directories are not a/ and b/",
    )


def _refused(patch: Patch, place: str, tree: Tree, stderr: str, *, already: bool) -> UsageError:
    """Say what git refused: the file, and the hunk as far as it can be told."""
    text = f"{place}: {patch.subject!r} does not apply to {tree.origin}"
    failed = _FAILED.findall(stderr)
    for path, line in failed[:_SHOWN]:
        text += f"\n  {path}: this hunk was rejected:"
        text += "".join(f"\n    {row}" for row in _hunk(patch.text, path, int(line)))
    if len(failed) > _SHOWN:
        text += f"\n  and one more in each of {len(failed) - _SHOWN} other files"
    if not failed:
        text += "".join(f"\n  {reason}" for reason in _reasons(stderr)[:_SHOWN])
    if already:
        return UsageError(text, "the tree has this patch already: leave it out")
    return UsageError(text, "bring the series up to date with the tree, or take another tree")


def _reasons(stderr: str) -> list[str]:
    lines = [re.sub(r"^(error|fatal): ", "", line) for line in stderr.splitlines()]
    return [line for line in lines if line.strip()] or ["git apply does not say why"]


def _hunk(text: str, path: str, line: int) -> Iterator[str]:
    """Yield the hunk of ``path`` that begins at ``line`` of the old file, cut if it is long."""
    current = ""
    shown = 0
    old = new = 0
    for row in text.split("\n"):
        if old <= 0 and new <= 0:
            if shown:
                return
            name = re.match(r"(?:---|\+\+\+) (?:[ab]/)?([^\t]+)", row)
            if name and name[1] != "/dev/null":
                current = name[1].rstrip()
        head = re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", row)
        if head and old <= 0 and new <= 0:
            old, new = int(head[2] or 1), int(head[3] or 1)
            shown = int(current == path and int(head[1]) == line)
            if shown:
                yield row
            continue
        if old > 0 or new > 0:
            old -= row[:1] in (" ", "-", "")
            new -= row[:1] in (" ", "+", "")
            if shown == _HUNK_LINES:
                yield "[...]"
            elif 0 < shown < _HUNK_LINES:
                yield row
            shown += bool(shown)


def _directory(path: Path) -> tuple[Patch, ...]:
    listing = path / "series"
    if listing.is_file():
        names = list(_listed(listing))
    else:
        names = sorted(found.name for found in path.glob("*.patch"))
    if not names:
        raise UsageError(f"{path}: no patches in it", "looked for a file `series` and *.patch")
    patches: list[Patch] = []
    for name in names:
        mails = _file(path / name)
        if mails[0].number != 0 and not Path(name).name.startswith("0000"):
            patches += _of_mails(name, mails)
    if not patches:
        raise UsageError(f"{path}: there is a cover letter in it, and no patch")
    return tuple(patches)


def _listed(listing: Path) -> Iterator[str]:
    """Yield the names in a quilt series file."""
    for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.partition("#")[0].split()
        if words[1:] not in ([], ["-p1"]):
            raise UsageError(f"{listing}: {line.strip()!r}: only patches with -p1 are understood")
        if words and not (listing.parent / words[0]).is_file():
            raise UsageError(f"{listing} names {words[0]}, which is not there")
        yield from words[:1]


def _file(path: Path) -> list[_Mail]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    return _split(data, path.name)


def _split(data: bytes, name: str) -> list[_Mail]:
    """Return the mails in ``data``, or all of it as one when it is a patch without mail."""
    starts = [match.end() for match in _FROM.finditer(data)]
    if not starts or data[: starts[0]].count(b"\n") > 1:
        return [_mail(data, name) if _HEADER.match(data) else _plain(data, name)]
    ends = [*[match.start() for match in _FROM.finditer(data)][1:], len(data)]
    pieces = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    if len(pieces) == 1:
        return [_mail(pieces[0], name)]
    return [_mail(piece, f"{name}:{number}") for number, piece in enumerate(pieces, 1)]


def _mail(data: bytes, name: str) -> _Mail:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    subject = " ".join(str(message["Subject"] or "").split())
    bodies = []
    for part in message.walk():
        if part.get_content_maintype() == "text" and part.get_content_subtype() != "html":
            payload = part.get_payload(decode=True)
            bodies.append(_text(payload) if isinstance(payload, bytes) else "")
    number = _NUMBER.match(subject)
    patch = Patch(name, _TAG.sub("", subject) or name, "\n".join(bodies))
    reply = subject.lower().startswith(("re:", "aw:"))
    return _Mail(patch, int(number[1]) if number else None, reply)


def _plain(data: bytes, name: str) -> _Mail:
    text = _text(data)
    words = _DIFF.split(text, maxsplit=1)[0].strip()
    subject = words.splitlines()[0] if words else name
    return _Mail(Patch(name, subject, text), None, False)


def _text(data: bytes) -> str:
    """Decode a mail's text; mail systems may have made every line end in CR LF."""
    text = data.decode(errors="surrogateescape")
    lines = text.count("\n")
    return text.replace("\r\n", "\n") if lines and text.count("\r\n") == lines else text


def _of_mails(name: str, mails: Sequence[_Mail]) -> tuple[Patch, ...]:
    """Return the patches among ``mails``, by their numbers if all have one."""
    found = [mail for mail in mails if not mail.reply and _DIFF.search(mail.patch.text)]
    if not found:
        raise UsageError(f"{name}: there is no patch in it", f"a series is {FORMS}")
    numbers = [mail.number for mail in found if mail.number is not None]
    if len(set(numbers)) < len(numbers):
        raise UsageError(
            f"{name}: two mails are patch {max(numbers, key=numbers.count)}: "
            "it may hold two versions of the series",
            "keep one of them, or say b4:MESSAGE-ID",
        )
    if len(numbers) == len(found):
        found = sorted(found, key=lambda mail: mail.number or 0)
    return tuple(mail.patch for mail in found)


def _range(argument: str, name: str, tree: Tree | None, store: Store) -> tuple[Patch, ...]:
    directory, colon, span = name.rpartition(":")
    if not colon or ".." not in span or "..." in span or span.startswith(".."):
        raise UsageError(f"{argument!r} is no range", "say git:DIRECTORY:FIRST..LAST")
    if directory:
        where = Path(directory)
    elif tree and tree.reference.startswith("tree:"):
        where = trees.split(tree.reference)[0]
    else:
        raise UsageError(
            f"{argument!r} names no repository, and the tree is in none",
            "say git:DIRECTORY:FIRST..LAST",
        )
    repository, commits = trees.commits(where, span, store)
    patches = []
    out = repository / "patch"
    ours = Git(repository)
    words = ["diff-tree", "--root", "-p", "--no-commit-id", "--binary", "--full-index", "-M"]
    with git.disk_errors(repository), git.locked(repository / "apply.lock"):
        for commit in commits:
            # To a file: on its way through a pipe line ends would be translated.
            ours.run(*words, f"--output={out}", commit.oid, what=f"reading {span}")
            text = out.read_bytes().decode(errors="surrogateescape")
            # An empty commit changes no tree.
            if text:
                patches.append(Patch(commit.oid[:12], commit.subject, text))
        out.unlink(missing_ok=True)
    if not patches:
        raise UsageError(f"{argument}: its commits change nothing")
    return tuple(patches)


def _b4(name: str) -> tuple[Patch, ...]:
    if not re.fullmatch(r"[^\s<>-][^\s<>]*", name):
        raise UsageError(f"b4:{name}: that is no message id", "say b4:MESSAGE-ID, without < and >")
    what = f"fetching b4:{name}"
    done = run(["b4", "am", "-o", "-", name], what=what, where=Path.cwd(), check=False)
    mails = _split(done.stdout.encode(), name) if done.stdout.strip() else []
    if done.returncode != 0 or not mails:
        raise InfraError(
            f"{what} failed: b4 ended with status {done.returncode}{tail(done.stderr, 4)}",
            "check the message id and the network (b4 asks lore.kernel.org); "
            "or save the series as an mbox and give that file",
        )
    return _of_mails(f"b4:{name}", mails)
