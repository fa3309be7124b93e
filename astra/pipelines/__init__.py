"""Science pipelines that come with astra, one package each."""
