"""ledger.py: the running counts equal those of a walk through all trials."""

import random
from collections import Counter

from feedrate.search.study.ledger import Ledger
from feedrate.search.study.trials import Counts, KnownTrial
from feedrate.trainables.config import LoaderConfig

CONFIGS = [LoaderConfig(num_workers=number, batch_size=32) for number in range(6)]


def walked(ledger):
    """Counts, tried settings and waiting numbers, from the trials one by one."""
    trials = ledger.all()
    uses = Counter()
    for past in trials:
        if past.config is not None and past.state != "lost":
            uses[past.config] += 1 if past.is_blameless else 2
    tried = {config for config, weight in uses.items() if weight >= 2}
    waiting = [past.number for past in trials if past.state == "waiting"]
    return Counts(**Counter(past.state for past in trials)), tried, waiting


def test_random_histories():
    rng = random.Random(1)
    for _ in range(50):
        ledger = Ledger()
        for step in range(60):
            if step < 3 or rng.random() < 0.4:
                config = rng.choice([*CONFIGS, None])
                state = rng.choice(("waiting", "running", "complete"))
                ledger.append(KnownTrial(number=len(ledger), trial_id=step, config=config, origin="sampler", run_id="s", state=state))
            else:
                past = ledger[rng.randrange(len(ledger))]
                state = rng.choice(("running", "complete", "pruned", "failed", "lost"))
                ledger.move(past, state, is_blameless=rng.choice((None, True, False)) if state == "failed" else None)
            counts, tried, waiting = walked(ledger)
            assert (ledger.counts(), set(ledger.tried)) == (counts, tried)
            assert [past.number for past in ledger.waiting()] == waiting


def test_a_setting_failed_by_the_machine_may_be_drawn_once_more():
    ledger = Ledger()
    for number in (0, 1):
        assert CONFIGS[0] not in ledger.tried
        ledger.append(KnownTrial(number=number, trial_id=number, config=CONFIGS[0], origin="sampler", run_id="s", state="running"))
        assert CONFIGS[0] in ledger.tried  # while it runs
        ledger.move(ledger[number], "failed", is_blameless=True)
    assert CONFIGS[0] in ledger.tried


def test_a_setting_and_the_one_it_folds_to_are_tried_together():
    """Prefetching beyond the epoch means the same as less: neither is drawn after the other was measured."""
    ledger = Ledger(lambda config: config if config.num_workers < 3 else CONFIGS[2])
    past = KnownTrial(number=0, trial_id=0, config=CONFIGS[5], origin="baseline", run_id="", state="running")
    ledger.append(past)
    assert ledger.tried == {CONFIGS[2], CONFIGS[5]}
    ledger.move(past, "lost")
    assert ledger.tried == set()
