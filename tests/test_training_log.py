from __future__ import annotations

from evaluation.report.training_log import read_logs


def write(folder, stage, text):
    (folder / "logs" / stage).mkdir(parents=True)
    (folder / "logs" / stage / "metrics.csv").write_text(text)


def test_curves_are_read_by_epoch(tmp_path):
    write(tmp_path, "final", "epoch,step,train_loss\n1,3,5.0\n2,7,4.0\n")
    write(tmp_path, "select", "epoch,step,train_loss,val_ndcg\n1,3,,0.25\n1,3,6.0,\n2,7,,0.5\n")
    first, last = read_logs(tmp_path)
    assert first.curves == {"val_ndcg": [(1, 0.25), (2, 0.5)], "train_loss": [(1, 6.0)]}
    assert last.curves == {"train_loss": [(1, 5.0), (2, 4.0)]}


def test_a_training_that_nothing_validated_is_not_said_to_be_stopped_by_validation(tmp_path):
    write(tmp_path, "select", "epoch,step,train_loss\n1,3,5.0\n")
    write(tmp_path / "b", "select", "epoch,step,train_loss,val_ndcg\n1,3,5.0,0.25\n")
    titles = [read_logs(folder)[0].title for folder in (tmp_path, tmp_path / "b")]
    assert titles == ["The only training: nothing was left to validate it by", "First training, which validation stops"]


def test_an_epoch_that_was_run_again_counts_once(tmp_path):
    write(tmp_path, "select", "epoch,step,train_loss\n1,3,5.0\n2,5,4.5\n2,7,4.0\n3,9,nan\n")
    (only,) = read_logs(tmp_path)
    assert only.curves == {"train_loss": [(1, 5.0), (2, 4.0)]}


def test_no_log_is_no_curve(tmp_path):
    assert read_logs(tmp_path) == []
    write(tmp_path, "select", "")
    assert read_logs(tmp_path) == []
