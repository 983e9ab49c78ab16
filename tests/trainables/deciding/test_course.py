"""The course of a training as points: every batch is in one, none has batches of two settings, and a long training has few."""

from feedrate.trainables.deciding.course import Course


def replay(batches):
    """Points of (num_workers, wait_s, step_s, aside_s) for each batch, with a clock that advances by their sum."""
    course, now_s, num, points = Course(), 0.0, 0, []

    def elapsed():
        return now_s, num

    for num_workers, wait_s, step_s, aside_s in batches:
        now_s, num = now_s + wait_s + step_s + aside_s, num + 1
        course.add(num_workers, wait_s, step_s, aside_s, elapsed)
        points += course.take()
    course.end(elapsed)
    return points + course.take()


def test_every_batch_is_in_one_point():
    batches = [(1, 0.1, 0.15, 0.0)] * 10 + [(3, 0.0, 0.25, 0.0)] * 3 + [(1, 0.1, 0.15, 0.0)] * 9 + [(1, 0.0, 0.0, 4.0)]
    points = replay(batches)
    assert [(each.num_workers, each.num_batches, each.step) for each in points] == [(1, 8, 8), (1, 2, 10), (3, 3, 13), (1, 8, 21), (1, 2, 23)]
    assert [each.time_s for each in points] == [2.0, 2.5, 3.25, 5.25, 9.5]
    assert sum(each.wait_s + each.step_s + each.aside_s for each in points) == 9.5
    assert points[-1].aside_s == 4.0
    assert points[0].to_json() == {
        "kind": "rate", "num_workers": 1, "time_s": 2.0, "step": 8, "num_batches": 8, "wait_s": 0.8, "step_s": 1.2, "aside_s": 0.0,
    }  # fmt: skip


def test_a_day_of_training_has_few_points():
    points = replay((2, 0.5, 0.5, 0.0) for _ in range(86_400))
    assert 1000 < len(points) < 1600
    assert sum(each.num_batches for each in points) == 86_400


def test_without_batches_there_is_no_point():
    assert replay([]) == []
