"""Chat templates come from the server and run at the client: they see little, and they end."""

import pytest

import models_common as common
from sottovoce.errors import UnsupportedModelError
from sottovoce.models.chat import ChatTemplate

ENDLESS = (
    # Nested loops over long text.
    "{% set s = 'x' * 60000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    # Recursion that branches.
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    # Much memory or time in a single step.
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'x'.center(10 ** 10) }}",
    "{{ '%099999999999d' % 1 }}",
    "{{ [0] * (2 ** 12) * (2 ** 12) * (2 ** 12) }}",
    "{{ lipsum(n=1000000) }}",
)


# How templates got out of the sandbox of Jinja before 3.1.6: a format string that reads attributes, called
# by a way around the check.
WAYS_OUT = (
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f(messages) }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))(messages) }}",
    "{{ [messages] | map('{0.__class__.__mro__}' | attr('format')) | list }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ cycler.__init__.__globals__ }}",
)


@pytest.mark.parametrize("source", WAYS_OUT)
def test_nothing_of_python_is_in_reach(source):
    try:
        text = ChatTemplate(source).render([{"role": "user", "content": "x"}])
    except UnsupportedModelError:
        return
    assert "class" not in text and "object" not in text


@pytest.mark.timeout(60)  # endless is what they would be
@pytest.mark.parametrize("source", ENDLESS)
def test_templates_end(source):
    with pytest.raises(UnsupportedModelError):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_loops_keep_their_meaning():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m.role }}"
        "{% if not loop.last %},{% endif %}{% endfor %}"
        "{% set n = namespace(x=0) %}{% for i in range(3) %}{% set n.x = n.x + i * 2 %}{% endfor %}{{ n.x }}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}"
    )
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert ChatTemplate(source).render(messages) == "1/2user,2/2assistant6a1"


def test_the_budget_is_per_rendering():
    template = ChatTemplate("{% for i in range(50000) %}{% endfor %}ok")
    for _ in range(10):
        assert template.render([{"role": "user", "content": "x"}]) == "ok"


def test_only_role_and_content_reach_the_template():
    """A name beside a message is the same for every placeholder; it would be taken for a constant."""
    tokenizer = common.tiny("llama").card.tokenizer
    template = ChatTemplate("<{{ messages[0].name }}>{{ messages[0].content }}")
    message = {"role": "user", "content": "hello", "name": "Alice Example"}
    prompt = template.prompt(tokenizer, [message])
    assert "Alice" not in tokenizer.decode(prompt.tokens)
