"""answers.md: every Python block runs and can fail, all questions are there, and the page renders on GitHub."""

import ast
import json
import re
import traceback
from typing import NamedTuple

import pytest
from helpers import PROJECT

PAGE = (PROJECT / "answers.md").read_text(encoding="utf-8")
LONGEST_BLOCK = 15  # lines, blank ones not counted
MOST_WORDS = 6500

# The handout's questions, word for word. Markdown marks and white space do not count.
QUESTIONS = [
    "What is deep learning, and how does it differ from traditional machine learning?",
    "What do we mean by forward propagation?",
    "What is backpropagation, and why is it essential for neural networks?",
    "Why do we use activation functions for the layers? What happens if we don't use activation functions?",
    "Write forward propagation equations and corresponding dimensions of the matrices and vectors for the neural "
    "network below. Assume your batch size is 1. (Dimensions for weight matrices and input vectors for each layer, as "
    "we did in the session.)",
    "When does our model have underfitting and overfitting? How do we determine these situations? Evaluate your "
    "answer.",
    "What is the learning rate in the context of training neural networks? What happens if the learning rate is too "
    "high or too low?",
    "What is dropout, and how does it help in training neural networks?",
    "What is the main difference between model's weights and hyperparameters?",
    "Explain the difference between batch gradient descent, stochastic gradient descent, and mini-batch gradient "
    "descent.",
    "Explain the difference between Adam and RMSprop optimizers.",
    r"Assume you have a linear regression model \hat{y} = \mathbf{f_w}(x) = \mathbf{w_1}x + \mathbf{w_0} for a dataset "
    r"of pairs (x_i, y_i)_{1 \le i \le N}. You want to estimate your weights so that your model fits the data well. "
    r"You have residuals (errors of your model for every pair) e_i = (y_i - \hat{y_i}). Then, using the residual sum "
    r"of squares (RSS) function \mathbf{RSS} = \sum_{i=1}^{N} e_i^2, show that your estimated weights can be found as "
    r"\mathbf{w}_{1} = \frac{\sum_{i=1}^{N} (x_{i} - \bar{x})(y_{i} - \bar{y})}{\sum_{i=1}^{N} (x_{i} - \bar{x})^{2}} "
    r"\mathbf{w}_{0} = \bar{y} - \mathbf{w}_{1}\bar{x} "
    r"where \bar{x} = \frac{1}{n} \sum_{i=1}^{N} x_i and \bar{y} = \frac{1}{n} \sum_{i=1}^{N} y_i are the means of "
    r"your samples.",
    "In binary classification, where the output can either be 0 or 1, the binary crossentropy loss function is used. "
    "The BCE loss measures the difference between the true labels and the predicted probabilities. Given a single data "
    r"point, the binary cross-entropy loss can be defined as: L(y, \hat{y}) = -[y \log(\hat{y}) + (1 - y) \log(1 - "
    r"\hat{y})] where: y is the true label (0 or 1). \hat{y} is the predicted probability for the positive class (1). "
    "In forward propagation, we calculate the predicted probability using a logistic function (also known as the "
    "sigmoid function), followed by the binary cross-entropy loss. For a model output z (logit): "
    r"\hat{y} = \sigma(z) = \frac{1}{1 + e^{-z}} This function converts the raw score (logit) z into a probability "
    r"\hat{y} between 0 and 1. Then assume you have the following neural network with 2 hidden layer and sigmoid "
    "function for every layer's activation function. Derive the forward and backward propagation equations for the "
    "binary cross-entropy loss function.",
]


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


def block_name(block: Block) -> str:
    return f"question-{block.question}-line-{block.line}"


BLOCKS = find_blocks()
every_block = pytest.mark.parametrize("block", BLOCKS, ids=block_name)


def run_block(block: Block) -> None:
    """Run a block in a fresh namespace; what it raises has `answers.md` and the page's line in its traceback."""
    lines_above = "\n" * (block.line - 1)
    exec(compile(lines_above + block.code, "answers.md", "exec"), {"__name__": "answers"})


def describe_failure(block: Block, error: Exception) -> str:
    """Name the question, and the line of answers.md where the error arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "answers.md"]
    line = lines[-1] if lines else block.line
    source = PAGE.splitlines()[line - 1].strip()
    return f"question {block.question}, answers.md line {line}: {type(error).__name__} {error} in: {source}"


@pytest.fixture(autouse=True)
def project_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Question 9 counts with the project's own modules."""
    monkeypatch.syspath_prepend(str(PROJECT))


@every_block
def test_block_runs_and_prints_nothing(block: Block, capsys: pytest.CaptureFixture) -> None:
    try:
        run_block(block)
    except Exception as error:
        pytest.fail(describe_failure(block, error), pytrace=False)
    assert capsys.readouterr() == ("", "")


@every_block
def test_block_is_short_and_ends_in_an_assert(block: Block) -> None:
    tree = ast.parse(block.code)
    last = tree.body[-1]
    while isinstance(last, ast.For):
        last = last.body[-1]
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"numpy", "torch", "main", "utils"} if block.question == 9 else {"numpy", "torch"}
    assert isinstance(last, ast.Assert)
    assert {name.split(".")[0] for name in imported} <= allowed
    assert len([line for line in block.code.splitlines() if line.strip()]) <= LONGEST_BLOCK


SABOTAGES = [
    (3, "delta2 = y_hat - y", "delta2 = y_hat + y"),  # a sign
    (11, "(1 - beta2) * g**2", "(1 - beta2) * g"),  # a square
    (13, "W2.T @ d2 * a1", "W2 @ d2 * a1"),  # a transpose, where the shapes still fit
    (3, "** 2) @ W.T", "** 2) @ W"),  # the same, in the product of Jacobians
    (6, "new_truth - new_fit", "new_truth + new_fit"),
    (11, "0.99 * v + 0.01 * g**2", "0.99 * v + 0.01 * abs(g)"),
]


def sabotaged(question: int, right: str, wrong: str) -> list[Block]:
    """Return the question's blocks that contain `right`, with `wrong` in its place."""
    hit = [block for block in BLOCKS if block.question == question and right in block.code]
    return [block._replace(code=block.code.replace(right, wrong)) for block in hit]


@pytest.mark.parametrize(("question", "right", "wrong"), SABOTAGES)
def test_a_wrong_formula_fails(question: int, right: str, wrong: str) -> None:
    blocks = sabotaged(question, right, wrong)
    assert blocks, f"question {question} no longer contains {right!r}"
    for block in blocks:
        with pytest.raises(AssertionError):
            run_block(block)


def test_a_failure_names_the_question_and_the_line() -> None:
    block = sabotaged(*SABOTAGES[0])[0]
    with pytest.raises(AssertionError) as failure:
        run_block(block)
    line = int(
        re.match(r"question 3, answers.md line (\d+): AssertionError", describe_failure(block, failure.value))[1]
    )
    assert PAGE.splitlines()[line - 1].startswith("assert by_hand")


TEXT = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)  # the page without its code
ANSWERS = re.split(r"^## \d+\. ", TEXT, flags=re.MULTILINE)[1:]
PARAGRAPHS = re.sub(r"^> ?", "", TEXT, flags=re.MULTILINE).split("\n\n")


def plain_words(text: str) -> str:
    """Return the text without Markdown's marks and, since TeX ignores them, without spaces inside formulas."""
    text = re.sub(r"^> ?(- )?", "", text, flags=re.MULTILINE)
    return re.sub(r"\s+", "", re.sub(r"[*$]", "", text))


def test_the_page_has_at_most_6500_words() -> None:
    """A word is one outside code, formulas, the handout's questions and the descriptions of pictures."""
    read = re.sub(r"^>.*|<!--.*?-->|!\[.*?\]\(.*?\)", "", TEXT, flags=re.MULTILINE)
    read = re.sub(r"\$\$.*?\$\$|\$.*?\$", "", read, flags=re.DOTALL)
    assert len([word for word in read.split() if re.search(r"\w", word)]) <= MOST_WORDS


def test_every_question_is_quoted_in_order() -> None:
    quotes = ["\n".join(re.findall(r"^>.*", answer, re.MULTILINE)) for answer in ANSWERS]
    assert [plain_words(quote) for quote in quotes] == [plain_words(question) for question in QUESTIONS]


def test_headings_are_numbered_from_1_to_13() -> None:
    assert re.findall(r"^## (\d+)\. \w", TEXT, re.MULTILINE) == [str(number) for number in range(1, 14)]


@pytest.mark.parametrize("label", ["In short", "Check", "Read on"])
def test_every_answer_has_each_part_once(label: str) -> None:
    assert [answer.count(f"**{label}.**") for answer in ANSWERS] == [1] * len(QUESTIONS)


def test_every_answer_has_a_block() -> None:
    assert {block.question for block in BLOCKS} == set(range(1, 14))


def test_every_picture_exists_and_is_described() -> None:
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", TEXT)
    assert pictures
    for description, path in pictures:
        assert (PROJECT / path).is_file(), path
        assert len(description.split()) >= 5, path


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("network-4-6-4-3", (4, 6, 4, 3)), ("network-two-hidden", (3, 4, 4, 1)), ("network-3-4-1", (3, 4, 1))],
)
def test_diagram_shows_every_unit_and_edge(name: str, sizes: tuple[int, ...]) -> None:
    drawing = (PROJECT / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert f"figures/{name}.svg" in TEXT
    assert len(set(re.findall(r'id="(unit-\d+-\d+)"', drawing))) == sum(sizes)
    edges = sum(before * after for before, after in zip(sizes, sizes[1:], strict=False))
    assert len(set(re.findall(r'id="(edge-\d+-\d+-\d+)"', drawing))) == edges


def github_anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_has_its_target() -> None:
    anchors = {github_anchor(heading) for heading in re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)}
    links = [link for link in re.findall(r"\]\(([^)]*)\)", TEXT) if "://" not in link]
    assert len(links) > len(QUESTIONS)
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (PROJECT / link).is_file(), link


def formulas(paragraph: str) -> list[str]:
    return re.findall(r"\$+([^$]+)\$+", re.sub(r"`[^`]*`", "", paragraph))


@pytest.mark.parametrize("paragraph", [paragraph for paragraph in PARAGRAPHS if "$$" in paragraph])
def test_display_formula_is_one_line_between_two_marks(paragraph: str) -> None:
    mark, formula, last_mark = paragraph.strip().splitlines()
    assert (mark, last_mark) == ("$$", "$$")
    assert not re.match(r"[-+=#>|*~]|\d+\.", formula)  # would start a list, a heading, a quote or a table


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
MEASURED = re.compile(r"(-?[\d,]*\d(?:\.\d+)?)(?: ± ([\d,]*\d(?:\.\d+)?))?( %)?<!-- ([^>]+) -->")
MEASURED_PARAGRAPHS = [paragraph for paragraph in PARAGRAPHS if paragraph.startswith("**Measured.**")]


def look_up(path: str) -> dict | float:
    value = json.loads((PROJECT / "figures" / "experiments.json").read_text(encoding="utf-8"))["experiments"]
    for key in path.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize("quote", [*MEASURED.finditer(PAGE)], ids=lambda quote: quote[4])
def test_a_quoted_measurement_is_the_recorded_one(quote: re.Match) -> None:
    shown, deviation, percent, path = quote.groups()
    value = look_up(path)
    mean, std = (value["mean"], value["std"]) if isinstance(value, dict) else (value, None)
    for text, number in ((shown, mean), (deviation, std)):
        if text is not None:
            decimals = len(text.partition(".")[2])
            assert text == f"{(100 if percent else 1) * number:,.{decimals}f}"


@pytest.mark.parametrize("paragraph", MEASURED_PARAGRAPHS)
def test_no_number_in_a_measured_paragraph_goes_unchecked(paragraph: str) -> None:
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", "", MEASURED.sub("", paragraph))  # settings stand in code style
    assert re.findall(r"\d+", prose) == []


@pytest.mark.parametrize("question", [1, 4, 6, 7, 8, 10, 11])
def test_an_answer_that_can_rest_on_a_measurement_does(question: int) -> None:
    answer = re.split(r"^## \d+\. ", PAGE, flags=re.MULTILINE)[question]
    assert "**Measured.**" in answer and "](figures/experiment-" in answer


def test_experiments_json_tells_how_it_was_measured() -> None:
    record = json.loads((PROJECT / "figures" / "experiments.json").read_text(encoding="utf-8"))
    assert record["dataset"] == "cifar10" and len(record["seeds"]) >= 3
    assert {"torch", "numpy"} <= record["versions"].keys() and record["hardware"]["cpu"]
