"""How well the images teach a model, and what they cost."""

from __future__ import annotations

from collections import defaultdict

from markupsafe import Markup

from reta.reporting import words
from reta.reporting.charts import Row, Series, dot_chart, line_chart
from reta.reporting.reading import Facts, Run, figure, mean, part
from reta.reporting.svg import whole_percent

_MOST_BARS = 20


def students(run: Run) -> list[Facts]:
    """Return the facts of the models trained on the images."""
    return list((run.metrics or {}).get("students") or [])


def accuracy(run: Run, which: str = "last") -> str:
    """Return mean ± standard deviation over the students of the last or best epoch."""
    found = part(run.metrics, "accuracy")
    mean_, deviation = figure(found, f"{which}_mean"), figure(found, f"{which}_std")
    return words.spread(mean_, deviation, len(students(run)))


def protocol(run: Run) -> str:
    """Return how the students were trained, as the end of a sentence; empty if unknown."""
    facts = part(run.metrics, "protocol")
    if not facts:
        return ""
    return f" under the {facts.get('title')}, with {facts.get('labels')} labels"


def accuracy_rows(run: Run) -> list[list[str]]:
    """Return a row per architecture and protocol that was trained on the images."""
    rows = []
    for row in (run.metrics or {}).get("accuracies") or []:
        facts = part(row, "protocol")
        count = int(row.get("n") or 0)
        spreads = [
            words.spread(figure(row, f"{which}_mean"), figure(row, f"{which}_std"), count)
            for which in ("last", "best")
        ]
        rows.append(
            [
                str(row.get("architecture")),
                str(facts.get("title")),
                str(facts.get("labels")),
                str(facts.get("epochs")),
                f"{figure(facts, 'learning_rate') or 0:g}, {figure(facts, 'stretch') or 0:g}",
                str(count),
                *spreads,
            ]
        )
    return rows


def full_data(run: Run) -> tuple[str, float] | None:
    """Return the best model known to be trained on all real images, and its test accuracy.

    It is a teacher; where it learned here, how long is said, since that may have been short.
    """
    facts = part(run.metrics, "full_data")
    candidates = [facts] if facts else run.teachers
    known = [
        (_learner(found), value)
        for found in candidates
        if (value := figure(found, "test_accuracy")) is not None
    ]
    return max(known, key=lambda pair: pair[1], default=None)


def _learner(teacher: Facts) -> str:
    name, epochs = str(teacher.get("architecture", "model")), figure(teacher, "epochs")
    return f"{name} of {words.plural(epochs, 'epoch')}" if epochs else name


def summary_rows(run: Run) -> list[list[str]]:
    """Return the table to see first: what models trained on what reach."""
    found = part(run.metrics, "accuracy")
    name, count = str((run.metrics or {}).get("student", "model")), len(students(run))
    model = f"{name}, {words.plural(count, 'student')}"
    rows = [["this set", model, accuracy(run), accuracy(run, "best")]]
    if whole := full_data(run):
        rows.append(["all real images", whole[0], words.percent(whole[1]), words.MISSING])
    if (chance := figure(run.metrics, "chance")) is not None:
        rows.append(["nothing: guessing", words.MISSING, words.percent(chance), words.MISSING])
    return rows if figure(found, "last_mean") is not None else []


def accuracy_chart(run: Run) -> Markup:
    """Return the accuracy between chance and training on everything."""
    found = part(run.metrics, "accuracy")
    rows = []
    if (chance := figure(run.metrics, "chance")) is not None:
        rows.append(Row("guessing", chance, words.percent(chance), style=4))
    if (last := figure(found, "last_mean")) is not None:
        deviation = figure(found, "last_std") if len(students(run)) > 1 else None
        rows.append(Row("distilled", last, accuracy(run), spread=deviation))
    if whole := full_data(run):
        rows.append(Row("all real images", whole[1], words.percent(whole[1]), style=1))
    return dot_chart(
        "Test accuracy",
        rows,
        "share of test images recognised",
        note="The same question put to models trained on different images.",
        bars=True,
        format_x=whole_percent,
    )


def learning_chart(run: Run) -> Markup:
    """Return the test accuracy of each student over its training."""
    series = [
        Series(
            f"seed {student.get('seed', index)}",
            [(float(epoch), float(value)) for epoch, value in student.get("curve") or []],
            index % 6,
        )
        for index, student in enumerate(students(run)[:6])
    ]
    return line_chart(
        "Test accuracy during training",
        series,
        ("epoch", ""),
        note="One line per student.",
        format_y=whole_percent,
    )


def mean_curve(run: Run) -> list[tuple[float, float]]:
    """Return the test accuracy over the epochs, averaged over the students."""
    found: dict[float, list[float]] = defaultdict(list)
    for student in students(run):
        for epoch, value in student.get("curve") or []:
            found[float(epoch)].append(float(value))
    return [(epoch, sum(values) / len(values)) for epoch, values in sorted(found.items())]


def per_class(run: Run) -> list[tuple[str, float]]:
    """Return the mean accuracy of each class over the students, the lowest first."""
    curves = [student.get("per_class") or [] for student in students(run)]
    pairs = []
    for label, name in enumerate(run.classes):
        values = [curve[label] for curve in curves if label < len(curve)]
        values = [value for value in values if value is not None]  # no test images
        if (value := mean(values)) is not None:
            pairs.append((name, float(value)))
    return sorted(pairs, key=lambda pair: pair[1])


def per_class_chart(run: Run) -> Markup:
    """Return the accuracy by class; of many classes, the lowest."""
    values = per_class(run)
    rows = [Row(name, value, words.percent(value)) for name, value in values[:_MOST_BARS]]
    more = f" The {len(rows)} lowest of {len(values)}." if len(values) > len(rows) else ""
    return dot_chart(
        "Test accuracy by class",
        rows,
        "share of the class's test images recognised",
        note=f"Mean over the students, the hardest class first.{more}",
        bars=True,
    )


def student_rows(run: Run) -> list[list[str]]:
    """Return a table row per student."""
    return [
        [
            str(student.get("seed", words.MISSING)),
            words.percent(figure(student, "last")),
            words.percent(figure(student, "best")),
            words.duration(figure(student, "seconds")),
        ]
        for student in students(run)
    ]


def teacher_rows(run: Run) -> list[list[str]]:
    """Return a table row per teacher."""
    return [
        [
            str(teacher.get("architecture", words.MISSING)),
            words.percent(figure(teacher, "test_accuracy")),
            words.count(figure(teacher, "parameters")),
            words.amount(figure(teacher, "epochs")),
            words.duration(figure(teacher, "seconds")),
        ]
        for teacher in run.teachers
    ]


def total_images(run: Run) -> int:
    """The number of synthetic images in the run."""
    return run.ipc * len(run.classes)


def cost_rows(run: Run) -> list[tuple[str, str, str]]:
    """Return what the images cost: a name, a value and a remark each; unknown ones left out."""
    metrics = run.metrics or {}
    images, labels = figure(metrics, "bytes_images"), figure(metrics, "bytes_labels")
    epochs = figure(metrics, "label_epochs")
    spent = [value for facts in run.recoveries if (value := figure(facts, "seconds")) is not None]
    squeeze = [value for facts in run.teachers if (value := figure(facts, "seconds")) is not None]
    labels_note = "soft labels: the teachers' opinion of every view of every image"
    if epochs:
        labels_note += f", for {words.plural(int(epochs), 'epoch')} of training"
    rows = [
        ("Training the teachers", words.duration(sum(squeeze) if squeeze else None), "once"),
        ("Distilling the images", words.duration(sum(spent) if spent else None), ""),
        ("Time per image", words.duration(figure(metrics, "seconds_per_image")), ""),
        ("Peak memory", words.size(figure(metrics, "peak_memory")), ""),
        ("Images", words.size(images), words.plural(total_images(run), "PNG file")),
        ("Labels", words.size(labels), labels_note),
    ]
    return [row for row in rows if row[1] != words.MISSING]


def cautions(run: Run) -> list[str]:
    """Return what a reader of the numbers should keep in mind."""
    notes = [str(warning) for warning in run.manifest.get("warnings") or []]
    found = part(run.metrics, "accuracy")
    last, best = figure(found, "last_mean"), figure(found, "best_mean")
    if len(students(run)) == 1:
        notes.append("One student was trained: how much the accuracy varies is not known.")
    if last is not None and best is not None and best - last > 0.01:
        notes.append(
            f"The best epoch ({words.percent(best)}) is found by looking at the test images. "
            f"The last epoch ({words.percent(last)}) is what one would get."
        )
    images = figure(run.metrics, "bytes_images")
    labels = figure(run.metrics, "bytes_labels")
    if images and labels and labels > images:
        notes.append(
            f"The labels take {labels / images:.3g} times the space of the images: "
            "count them when comparing sizes."
        )
    connections = [row for facts in run.recoveries for row in facts.get("connections") or []]
    if connections:
        notes.append(
            "Real training images were blended into the synthetic ones, "
            "which may therefore show parts of them. They are not anonymous."
        )
    distinct = mean([figure(row, "distinct_anchors") for row in connections])
    if distinct is not None and distinct < 0.75 * run.ipc:
        notes.append(
            f"Images of a class often shared an anchor: on average {distinct:.3g} different ones "
            f"for {run.ipc} images, which pulls them together."
        )
    return notes
