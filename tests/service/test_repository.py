from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models import bundle as bundles
from models.outputs import Outputs
from service.errors import EngineError, ModelError
from service.repository import open_model, self_test
from service.runtime import everything
from tests.service import tiny


def change(settings, **changes):
    return settings.model_copy(update=changes)


def test_a_good_bundle_is_opened(model):
    assert model.manifest.name == "tiny"
    assert self_test(model) < 1e-5


def test_versions(settings, bundle_path):
    assert open_model(change(settings, bundle=bundle_path.parent)).bundle.path == bundle_path


def test_no_bundle(settings, tmp_path):
    with pytest.raises(ModelError, match="no bundle here"):
        open_model(change(settings, bundle=tmp_path))


@pytest.mark.parametrize("name", bundles.REQUIRED)
def test_an_altered_file_is_named(settings, publish, name):
    path = publish()
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: sha256"):
        open_model(change(settings, bundle=path))


def test_an_unverified_bundle_needs_a_word(settings, publish, caplog):
    path = publish(passed=False)
    with pytest.raises(ModelError, match=r"unverified.*r_hat.*--allow-unverified"):
        open_model(change(settings, bundle=path))
    model = open_model(change(settings, bundle=path, allow_unverified=True))
    assert not model.manifest.verdict.verified
    assert "unverified" in caplog.text


def test_a_policy_that_is_not_there(settings):
    with pytest.raises(ModelError, match="no policy 'bold'; it has default, strict, open"):
        open_model(change(settings, policy="bold"))


def test_golden_answers_that_do_not_come(settings, publish):
    with pytest.raises(ModelError, match=r"golden\.npz: self-test: logits differ by 0\.1"):
        open_model(change(settings, bundle=publish(golden_shift=0.1)))


def test_golden_features_that_do_not_come(settings, publish):
    """The right logits of the wrong features would answer well, and flag wrongly."""
    with pytest.raises(ModelError, match=r"golden\.npz: self-test: features differ by 0\.1"):
        open_model(change(settings, bundle=publish(feature_shift=0.1)))


def test_self_test_catches_numbers_that_are_none(model, with_logits):
    nothing = np.full((tiny.M, tiny.K), np.nan, dtype=np.float32)
    broken = with_logits(lambda images: np.stack([nothing] * len(images)))
    with pytest.raises(ModelError, match="differ by nan"):
        self_test(broken)


def test_self_test_catches_an_image_that_fails_alone(model, with_logits):
    def logits(images):
        values = everything(model.runtime, images).logits
        return values if len(images) > 1 else np.full_like(values, np.nan)

    with pytest.raises(ModelError, match="logits differ by nan"):
        self_test(with_logits(logits))


def test_self_test_catches_a_wrong_shape(model, with_logits):
    broken = with_logits(lambda images: everything(model.runtime, images).logits[:, :3])
    with pytest.raises(ModelError, match=r"logits \(5, 3, 3\)"):
        self_test(broken)


def test_self_test_catches_another_label(model):
    flat = np.zeros_like(model.bundle.golden.logits)
    flat[..., 0] = 1e-6
    golden = replace(model.bundle.golden, logits=flat)

    class Other:
        name, device, members, group = "other", "cpu", tiny.M, tiny.GROUP

        def evaluate(self, seen, until, images):
            answer = np.zeros((len(images), until - seen, 3), dtype=np.float32)
            answer[..., 1] = 1e-6
            return Outputs(answer, model.runtime.evaluate(seen, until, images).features)

    broken = replace(model, bundle=replace(model.bundle, golden=golden), runtime=Other())
    with pytest.raises(ModelError, match="image 0 has another most probable label"):
        self_test(broken)


def test_self_test_reports_an_engine_that_raises(with_logits):
    def fail(images):
        raise RuntimeError("out of memory")

    with pytest.raises(EngineError, match="function failed: out of memory"):
        self_test(with_logits(fail))
