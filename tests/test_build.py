def test_x(built) -> None:
    print(built.generation.counts)
