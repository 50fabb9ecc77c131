# Licensed under a 3-clause BSD style license - see LICENSE
"""Callbacks that change how a model is trained as time goes by."""

import keras

from astrovae._validation import check_positive_int

__all__ = ["CyclicalBeta", "FreeBits", "KLWarmup", "SigmaWarmup"]


class _Schedule(keras.callbacks.Callback):
    """
    Set an attribute of the model, as a function of epoch or step alone.

    So a training that was interrupted and resumed meets the same values as one
    that was not. The value is written to the logs under the attribute's name.
    A subclass defines ``value(progress)``: the value after so many epochs, or
    steps.

    Parameters
    ----------
    attribute : str
        The attribute.
    by_steps : bool, optional
        Whether progress is counted in steps instead of epochs.
    """

    def __init__(self, attribute, by_steps=False):
        super().__init__()
        self.attribute = attribute
        self.by_steps = by_steps

    def _set(self, progress):
        value = float(self.value(progress))
        # asking for the model costs time on JAX: only when something changes
        if value != self._current:
            setattr(self.model, self.attribute, value)
            self._current = value

    def on_train_begin(self, logs=None):
        self._current = None

    def on_epoch_begin(self, epoch, logs=None):
        if not self.by_steps:
            self._set(epoch)
        elif self.params.get("steps") is None:
            msg = (
                f"{type(self).__name__} by steps needs to know how many steps an "
                "epoch has, and this dataset does not tell: use epochs, or give "
                "steps_per_epoch to fit."
            )
            raise ValueError(msg)
        else:
            self._first_step = epoch * self.params["steps"]

    def on_train_batch_begin(self, batch, logs=None):
        if self.by_steps:
            self._set(self._first_step + batch)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs[self.attribute] = self._current


def _length(epochs, steps):
    """Check that one of two lengths is given; return it, and if it is steps."""
    if (epochs is None) == (steps is None):
        msg = f"give either epochs or steps, got epochs={epochs!r}, steps={steps!r}."
        raise ValueError(msg)
    if steps is None:
        return check_positive_int("epochs", epochs), False
    return check_positive_int("steps", steps), True


def _check_not_negative(**values):
    for name, value in values.items():
        if not value >= 0:
            msg = f"{name} must not be negative, got {name}={value!r}."
            raise ValueError(msg)


class KLWarmup(_Schedule):
    """
    Raise the weight of the KL divergence from low to high.

    At the beginning the decoder knows nothing that is worth a latent; under
    the full weight latents are then switched off, and may stay so.

    Parameters
    ----------
    epochs : int, optional
        Length of the rise in epochs, within each of which the weight is
        constant.
    steps : int, optional
        Or its length in steps. On JAX, each of them costs a little more.
    start, stop : float, optional
        First and last weight.

    Raises
    ------
    ValueError
        If not exactly one length is given, or a weight is negative.

    References
    ----------
    Bowman et al. 2016, CoNLL (arXiv:1511.06349); Sønderby et al. 2016,
    NeurIPS (arXiv:1602.02282).

    Examples
    --------
    >>> from astrovae.models import KLWarmup
    >>> warmup = KLWarmup(epochs=10)
    >>> [warmup.value(epoch) for epoch in (0, 5, 10, 20)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(self, epochs=None, *, steps=None, start=0.0, stop=1.0):
        self.length, by_steps = _length(epochs, steps)
        super().__init__("beta", by_steps)
        _check_not_negative(start=start, stop=stop)
        self.start, self.stop = start, stop

    def value(self, progress):
        """
        Give the weight.

        Parameters
        ----------
        progress : int
            Epochs, or steps, that have passed.

        Returns
        -------
        beta : float
            The weight of the KL divergence.
        """
        return self.start + (self.stop - self.start) * min(progress / self.length, 1)


class CyclicalBeta(_Schedule):
    """
    Raise the weight of the KL divergence again and again.

    Each cycle begins with a rise and ends with a phase at full weight. Latents
    that went unused in one cycle get another chance in the next.

    Parameters
    ----------
    period : int
        Length of a cycle in epochs.
    ramp : float, optional
        Which part of it the rise takes.
    power : float, optional
        The rise is that power of time: 1 is linear; 3 is what s3VDC and
        AstroVaDEr used.
    start, stop : float, optional
        Lowest and highest weight.
    delay : int, optional
        Epochs before the first cycle, at the lowest weight.
    num_cycles : int, optional
        Cycles after which the weight stays at the highest; by default there
        is no end.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Fu et al. 2019, NAACL (arXiv:1903.10145); Cao et al. 2020
    (arXiv:2005.08047), s3VDC.

    Examples
    --------
    >>> from astrovae.models import CyclicalBeta
    >>> cycles = CyclicalBeta(period=4)
    >>> [cycles.value(epoch) for epoch in range(6)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """

    def __init__(
        self,
        period,
        *,
        ramp=0.5,
        power=1.0,
        start=0.0,
        stop=1.0,
        delay=0,
        num_cycles=None,
    ):
        super().__init__("beta")
        self.period = check_positive_int("period", period)
        if not 0 < ramp <= 1:
            msg = f"ramp must be above 0 and at most 1, got ramp={ramp!r}."
            raise ValueError(msg)
        _check_not_negative(power=power, start=start, stop=stop, delay=delay)
        if num_cycles is not None:
            check_positive_int("num_cycles", num_cycles)
        self.ramp, self.power = ramp, power
        self.start, self.stop = start, stop
        self.delay, self.num_cycles = delay, num_cycles

    def value(self, progress):
        """
        Give the weight.

        Parameters
        ----------
        progress : int
            Epochs that have passed.

        Returns
        -------
        beta : float
            The weight of the KL divergence.
        """
        cycle, epoch = divmod(progress - self.delay, self.period)
        if cycle < 0:
            return self.start
        if self.num_cycles is not None and cycle >= self.num_cycles:
            return self.stop
        rise = min(epoch / (self.ramp * self.period), 1) ** self.power
        return self.start + (self.stop - self.start) * rise


class FreeBits(_Schedule):
    """
    Do not press a latent below some information.

    The KL divergence of a latent, averaged over the batch, counts in training
    only as far as it exceeds the threshold. For priors that do not factorise
    by latent, the threshold holds for the whole, and is ``latent_dim`` times
    as large. The reported ELBO knows nothing of it.

    Parameters
    ----------
    threshold : float
        Free nats per latent.
    epochs : int, optional
        After so many, nothing is free any more; by default it is throughout.

    Raises
    ------
    ValueError
        If the threshold is negative.

    References
    ----------
    Kingma et al. 2016, NeurIPS (arXiv:1606.04934), eq. 15.

    Examples
    --------
    >>> from astrovae.models import FreeBits
    >>> FreeBits(0.1, epochs=5).value(7)
    0.0
    """

    def __init__(self, threshold, *, epochs=None):
        super().__init__("free_bits")
        _check_not_negative(threshold=threshold)
        if epochs is not None:
            check_positive_int("epochs", epochs)
        self.threshold, self.epochs = threshold, epochs

    def value(self, progress):
        """
        Give the threshold.

        Parameters
        ----------
        progress : int
            Epochs that have passed.

        Returns
        -------
        free_bits : float
            Free nats per latent.
        """
        over = self.epochs is not None and progress >= self.epochs
        return 0.0 if over else float(self.threshold)


class SigmaWarmup(_Schedule):
    """
    Begin as if the images were noisier than they are.

    A noise that falls to zero is added to the pixels' variance in training. It
    keeps a network from calling everything noise, or from staking all on a
    few quiet pixels, before it can paint a galaxy.

    Parameters
    ----------
    start : float, optional
        The noise at the beginning, in units of the image scale of the model.
    epochs : int, optional
        After how many epochs it is gone.
    steps : int, optional
        Or after how many steps. On JAX, each of them costs a little more.

    Raises
    ------
    ValueError
        If not exactly one length is given, or ``start`` is negative.

    Examples
    --------
    >>> from astrovae.models import SigmaWarmup
    >>> SigmaWarmup(1.0, epochs=4).value(1)
    0.75
    """

    def __init__(self, start=1.0, *, epochs=None, steps=None):
        self.length, by_steps = _length(epochs, steps)
        super().__init__("extra_sigma", by_steps)
        _check_not_negative(start=start)
        self.start = start

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        # the addition costs time at every pixel: it is compiled in on demand
        self.model._plain.noisier = True
        self.model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        self.model._plain.noisier = False
        self.model.extra_sigma = 0.0
        self.model.train_function = None

    def value(self, progress):
        """
        Give the added noise.

        Parameters
        ----------
        progress : int
            Epochs, or steps, that have passed.

        Returns
        -------
        extra_sigma : float
            Standard deviation, in units of the image scale.
        """
        return self.start * max(1 - progress / self.length, 0.0)
