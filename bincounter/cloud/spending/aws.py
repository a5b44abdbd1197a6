"""What only AWS can tell of something that may still be there; it is asked where credentials are at hand."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bincounter.cloud.jobs import Job, answered_here
from bincounter.errors import BinCounterError, ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account


class Rehearsed(BinCounterError):
    """It was on a control plane of this machine that is no more, and it has ended with it."""


class Aws:
    """Asks; an account that did not answer is not asked again."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account | BinCounterError] = {}

    def training_job(self, job: Job) -> dict[str, Any] | None:
        """DescribeTrainingJob; ``None`` where the account knows no such job.

        Raises:
            BinCounterError: nobody could be asked.
        """
        from bincounter.cloud.endpoints.states import found

        return self._answer(
            job.region,
            lambda account: found(
                lambda: account.sagemaker.describe_training_job(TrainingJobName=job.name), f"asking for {job.name}"
            ),
            rehearsed=job.rehearsed,
        )

    def endpoint(self, name: str, region: str, *, rehearsed: bool) -> dict[str, Any] | None:
        """DescribeEndpoint; ``None`` where the account knows no such endpoint.

        Raises:
            BinCounterError: nobody could be asked.
        """
        from bincounter.cloud.endpoints.states import describe

        return self._answer(region, lambda account: describe(account, name), rehearsed=rehearsed)

    def _answer(
        self, region: str, ask: "Callable[[Account], dict[str, Any] | None]", *, rehearsed: bool
    ) -> dict[str, Any] | None:
        account = self._account(region, rehearsed=rehearsed)
        try:
            return ask(account)
        except BinCounterError as error:
            self._accounts[region] = error
            raise Rehearsed if rehearsed else error from None

    def _account(self, region: str, *, rehearsed: bool) -> "Account":
        if region not in self._accounts:
            try:
                self._accounts[region] = _account(region)
            except BinCounterError as error:
                self._accounts[region] = error
        account = self._accounts[region]
        here = not isinstance(account, BinCounterError) and answered_here(account)
        if rehearsed and not here:
            raise Rehearsed
        if isinstance(account, BinCounterError):
            raise account
        if here and not rehearsed:
            raise ConfigError("AWS_ENDPOINT_URL leads to a rehearsal, which knows nothing of AWS")
        return account


def _account(region: str) -> "Account":
    import boto3

    from bincounter.cloud.account import Account
    from bincounter.cloud.aws_errors import answered_by_aws

    with answered_by_aws("reading the AWS settings"):
        if boto3.Session().get_credentials() is None:
            raise ResourceError("no AWS credentials are at hand")
    return Account(region)
