"""Tests of the callbacks."""

from astrovae.models import VAE, TrainingProgress


def test_progress_is_shown(stack, capsys):
    """One line, on standard error, with the loss beside it."""
    vae = VAE(stack.image_shape, latent_dim=2)
    vae.compile()
    vae.fit(stack, epochs=2, verbose=0, callbacks=[TrainingProgress("Learning")])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Learning" in captured.err
    assert "2/2" in captured.err
    assert "loss" in captured.err
