"""answers.md: every Python block runs and can fail, all questions are there, and the page renders on GitHub."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import PROJECT, read_json

PAGE = (PROJECT / "answers.md").read_text(encoding="utf-8")
RECORD = read_json(PROJECT / "figures" / "experiments.json")
LONGEST_BLOCK = 22  # lines, blank ones not counted
MOST_WORDS = 7500

# The handout's questions, word for word, one in each line. Markdown marks and white space do not count.
QUESTIONS = Path(__file__).with_name("questions.txt").read_text(encoding="utf-8").splitlines()


class Block(NamedTuple):
    question: int
    line: int  # of the first line of code in answers.md
    code: str


def find_blocks() -> list[Block]:
    """Return the Python blocks of the page, each with the number of the question it stands under."""
    blocks = []
    for match in re.finditer(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        before = PAGE[: match.start(1)]
        question = re.findall(r"^## (\d+)\. ", before, re.MULTILINE)[-1]
        blocks.append(Block(int(question), before.count("\n") + 1, match[1]))
    return blocks


BLOCKS = find_blocks()


def run_block(block: Block) -> None:
    """Run a block in a fresh namespace; what it raises has `answers.md` and the page's line in its traceback."""
    lines_above = "\n" * (block.line - 1)
    exec(compile(lines_above + block.code, "answers.md", "exec"), {"__name__": "answers"})


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"question-{block.question}-line-{block.line}")
def test_a_block_is_short_runs_prints_nothing_and_ends_in_an_assert(
    block: Block, capsys: pytest.CaptureFixture[str]
) -> None:
    run_block(block)
    assert capsys.readouterr() == ("", "")
    last = ast.parse(block.code).body[-1]
    while isinstance(last, ast.For):
        last = last.body[-1]
    assert isinstance(last, ast.Assert)
    assert len([line for line in block.code.splitlines() if line.strip()]) <= LONGEST_BLOCK


SABOTAGES = [
    (3, "@ a1 + b2 - y", "@ a1 + b2 + y"),  # a sign
    (11, "(1 - beta2) * g**2", "(1 - beta2) * g"),  # a square
    (13, "W2.T @ d2 * a1", "W2 @ d2 * a1"),  # a transpose, where the shapes still fit
    (3, "** 2) @ W.T", "** 2) @ W"),  # the same, in the product of slopes and weights
    (6, "new_truth - new_fit", "new_truth + new_fit"),
    (8, "w * r / (1 - p)", "w * r"),  # the factor of the backward pass
    (12, "-4 * np.log(", "-3 * np.log("),
]


@pytest.mark.parametrize(("question", "right", "wrong"), SABOTAGES)
def test_a_wrong_formula_fails(question: int, right: str, wrong: str) -> None:
    blocks = [block for block in BLOCKS if block.question == question and right in block.code]
    assert blocks, f"question {question} no longer contains {right!r}"
    for block in blocks:
        with pytest.raises(AssertionError):
            run_block(block._replace(code=block.code.replace(right, wrong)))


TEXT = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)  # the page without its code
ANSWERS = re.split(r"^## \d+\. ", TEXT, flags=re.MULTILINE)[1:]
PARAGRAPHS = re.sub(r"^> ?", "", TEXT, flags=re.MULTILINE).split("\n\n")


def plain_words(text: str) -> str:
    """Return the text without Markdown's marks and, since TeX ignores them, without spaces inside formulas."""
    text = re.sub(r"^> ?(- )?", "", text, flags=re.MULTILINE)
    return re.sub(r"\s+", "", re.sub(r"[*$]", "", text))


def test_the_page_is_not_too_long() -> None:
    """A word is one outside code, formulas, tables, folded parts, the handout's questions and pictures."""
    read = re.sub(r"<details>.*?</details>", "", TEXT, flags=re.DOTALL)
    read = re.sub(r"^>.*|^\|.*|<!--.*?-->|!\[.*?\]\(.*?\)", "", read, flags=re.MULTILINE)
    read = re.sub(r"\$\$.*?\$\$|\$.*?\$", "", read, flags=re.DOTALL)
    assert len([word for word in read.split() if re.search(r"\w", word)]) <= MOST_WORDS


def test_the_questions_of_the_handout_are_quoted_word_for_word() -> None:
    assert re.findall(r"^## (\d+)\. \w", TEXT, re.MULTILINE) == [str(number) for number in range(1, 14)]
    quotes = ["\n".join(re.findall(r"^>.*", answer, re.MULTILINE)) for answer in ANSWERS]
    assert [plain_words(quote) for quote in quotes] == [plain_words(question) for question in QUESTIONS]


@pytest.mark.parametrize("number", range(1, 14))
def test_every_answer_has_its_parts_and_opens_in_plain_words(number: int) -> None:
    """Between the handout's question, with its picture, and the short answer: no formula, no bold term."""
    answer = ANSWERS[number - 1]
    for part in ("**In short.**", "<summary>Check: ", "**Read on.**"):
        assert answer.count(part) == 1, part
    if number in (1, 4, 6, 7, 8, 10, 11):
        assert "**Measured.**" in answer
    opening = re.sub(r"^>.*|!\[.*", "", answer.partition("**In short.**")[0], flags=re.MULTILINE).partition("\n")[2]
    assert 2 <= len(re.findall(r"[.?!](?=\s)", opening)) <= 6 and not re.search(r"[$*`]", opening)


def test_folded_parts_render() -> None:
    """GitHub reads Markdown inside a folded part only after a blank line."""
    assert PAGE.count("<details>") == PAGE.count("</details>") == PAGE.count("</summary>\n\n") > len(QUESTIONS)


def test_every_link_and_picture_has_its_target() -> None:
    headings = re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}  # as GitHub does
    links = [link for link in re.findall(r"\]\(([^)]*)\)", TEXT) if "://" not in link]
    assert len(links) > len(QUESTIONS)
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (PROJECT / link).is_file(), link
    for description, path in re.findall(r"!\[(.*?)\]\((.*?)\)", TEXT):
        assert len(description.split()) >= 5, path


def formulas(paragraph: str) -> list[str]:
    return re.findall(r"\$+([^$]+)\$+", re.sub(r"`[^`]*`", "", paragraph))


def test_display_formulas_are_one_line_between_two_marks() -> None:
    for paragraph in PARAGRAPHS:
        if "$$" in paragraph:
            mark, formula, last_mark = paragraph.strip().splitlines()
            assert (mark, last_mark) == ("$$", "$$")
            assert not re.match(r"[-+=#>|*~]|\d+\.", formula), formula  # starts a list, a heading, a quote or a table


def test_inline_formulas_are_closed_and_stand_free() -> None:
    for line in "\n\n".join(PARAGRAPHS).replace("$$", "").splitlines():
        line = re.sub(r"`[^`]*`", "", line)
        assert line.count("$") % 2 == 0, line
        for formula in re.finditer(r"\$([^$]+)\$", line):
            assert line[: formula.start()][-1:] in ("", " ", "("), line
            assert line[formula.end() :][:1] in ("", " ", *".,;:)"), line
            assert formula[1] == formula[1].strip(), line


# Markdown reads these before a formula is set: a backslash before punctuation, HTML, emphasis, code, a table border.
BREAKS_ON_GITHUB = re.compile(r"\\[^A-Za-z]|[<>*`~|]|\]\(")


def test_formulas_survive_markdown() -> None:
    for paragraph in PARAGRAPHS:
        for formula in formulas(paragraph):
            assert not BREAKS_ON_GITHUB.search(formula), formula
            assert formula.count("{") == formula.count("}"), formula
            assert formula.count(r"\left") == formula.count(r"\right"), formula
            assert formula.count(r"\begin") == formula.count(r"\end"), formula
        opens, closes = r"(?<![A-Za-z0-9])_(?=\S)", r"(?<=\S)_(?![A-Za-z0-9])"  # of emphasis
        assert not re.search(f"{opens}.*{closes}", " ".join(formulas(paragraph)), re.DOTALL), paragraph


# A measured number, perhaps with its deviation and as a percentage, and behind it in a comment, which GitHub does not
# show, where it stands in experiments.json: 88.2 ± 0.3 %<!-- experiment/key/key -->
MEASURED = re.compile(r"([-−]?[\d,]*\d(?:\.\d+)?)(?: ± ([\d,]*\d(?:\.\d+)?))?( %)?<!-- ([^>]+) -->")


@pytest.mark.parametrize("quote", [*MEASURED.finditer(PAGE)], ids=lambda quote: quote[4])
def test_a_quoted_measurement_is_the_recorded_one(quote: re.Match) -> None:
    shown, deviation, percent, path = quote.groups()
    value = RECORD
    for key in path.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    mean, std = (value["mean"], value["std"]) if isinstance(value, dict) else (value, None)
    for text, number in ((shown, mean), (deviation, std)):
        if text is not None:
            decimals = len(text.partition(".")[2])
            assert text.replace("−", "-") == f"{(100 if percent else 1) * number:,.{decimals}f}"


def test_a_measured_paragraph_has_at_most_four_numbers_all_of_them_recorded() -> None:
    settings_and_links = r"`[^`]*`|\$[^$]*\$|\[question \d+\]\(.*?\)"
    for paragraph in PARAGRAPHS:
        if paragraph.startswith("**Measured.**"):
            assert re.findall(r"\d+", re.sub(settings_and_links, "", MEASURED.sub("", paragraph))) == [], paragraph
            assert len(MEASURED.findall(paragraph)) <= 4, paragraph


def test_the_record_tells_how_it_was_measured() -> None:
    for measurement in RECORD.values():
        made_with = measurement["measured_with"]
        assert made_with["dataset"] == "cifar10" and made_with["hardware"]["cpu"]
        assert {"torch", "numpy"} <= made_with["versions"].keys()
