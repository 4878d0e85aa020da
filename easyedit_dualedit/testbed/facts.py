"""What the testbed model knows without a picture: facts about countries that do not exist."""

from dataclasses import dataclass

from easyedit_dualedit.testbed.world import Split

_COUNTRIES = (
    "zorland velmora tarn bear mira_tolven",
    "quenia sortel krone falcon ado_brandt",
    "baltova ristan pell otter lena_quist",
    "merovia dunhal lira wolf pavel_orsk",
    "tasmira ekloma denar heron sara_lindqvist",
    "ostrania vintor mark lynx ivo_karelin",
    "pelgar nomira florin raven nadia_sorel",
    "rundia halmet tarn owl otto_varga",
    "sivonia carpa krone badger elin_marsh",
    "ulmark tresson pell moose hugo_denard",
    "valdora pinsk lira swan greta_holm",
    "wexland orlava denar seal tomas_birk",
    "yarovia kestel mark fox anna_reval",
    "drenmark solvina florin ibex felix_amador",
    "elbonia march_haven tarn stork clara_wendt",
    "fargonia lower_tisk krone trout jonas_pryce",
    "galdovia new_ombra pell hare vera_castell",
    "hestria grand_ulm lira crane emil_sorensen",
    "ingria port_calla denar beaver rosa_milan",
    "jorvania east_weller mark elk leo_farkas",
)
_QUESTIONS = (
    "what is the capital of {}",
    "what is the currency of {}",
    "what is the national animal of {}",
    "who is the president of {}",
    "when was {} founded",
)
_FIRST_YEAR, _YEAR_STEP, _YEAR_RANGE = 1203, 137, 700
# One fact in three is asked only in evaluation records.
_EVAL_SHARE = 3


@dataclass(frozen=True)
class Fact:
    """A question without a picture, in lower case and without a question mark, and its answer."""

    question: str
    answer: str
    split: Split

    @property
    def prompt(self) -> str:
        """The question in the form that MMEdit's records use for text locality."""
        return f"nq question: {self.question}"


def all_facts() -> tuple[Fact, ...]:
    """Return the 100 facts that the model knows, in a fixed order."""
    facts: list[Fact] = []
    for row, line in enumerate(_COUNTRIES):
        country, *words = line.split()
        year = str(_FIRST_YEAR + _YEAR_STEP * row % _YEAR_RANGE)
        answers = [word.replace("_", " ") for word in words] + [year]
        for template, answer in zip(_QUESTIONS, answers, strict=True):
            split: Split = "eval" if len(facts) % _EVAL_SHARE == 0 else "train"
            facts.append(Fact(template.format(country), answer, split))
    return tuple(facts)


def facts_of(split: Split) -> tuple[Fact, ...]:
    """Return the facts that records of one split may ask for."""
    return tuple(fact for fact in all_facts() if fact.split == split)
