"""Many threads at once get what one alone gets: nothing that they share changes while it works."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from service.text.families import LLAMA_2
from service.text.infilling.families import InfillOrder
from service.text.prompt import encode_prompt


def test_64_threads_mixing_infilling_chat_and_prompts_get_what_one_gets(
    codellama_of_json, codellama_infilling, chat_template
):
    template = chat_template(codellama_of_json, LLAMA_2)
    texts = [f"def f{n}(x):\n    return <PRE> ☺ {n}\n" for n in range(16)]

    def work(number: int) -> list[int]:
        text = texts[number // 4]
        if number % 4 == 0:
            return template.render([{"role": "user", "content": text}])
        if number % 4 == 1:
            return encode_prompt(codellama_of_json, text)
        order = list(InfillOrder)[number % 2]
        return codellama_infilling.assemble(text, text, max_tokens=40, order=order).token_ids

    alone = [work(number) for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        for _ in range(3):
            assert list(pool.map(work, range(64))) == alone
